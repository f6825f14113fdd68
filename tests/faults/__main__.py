"""The fault suite: `python -m tests.faults [--quick] [--only FAULT ...] [--json FILE] [--work DIR]`.

Kills, stops, starves and damages runs, and prints a table of what became of them. Finished trials are kept in the work
folder: the same command goes on with the others, unless the code has changed. Exit code 0 if all trials passed, and 1
if some failed.
"""

import argparse
import difflib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as in pytest, whose root of imports is `tests`

from faults.suite import all_faults
from faults.suite.base import Fault
from faults.suite.runner import RESULTS, Results, Row, run_fault
from faults.suite.sources import ROOT, code_digest

from umd_eqx.core.errors import BadInput, disk_errors, require_writable
from umd_eqx.core.files import save_json
from umd_eqx.runs.lock import locked


def parsed(arguments: Sequence[str] | None, faults: Sequence[Fault]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=str(__doc__).split("\n\n")[1])
    parser.add_argument("--quick", action="store_true", help="a few trials of each fault, in minutes")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help=", ".join(fault.name for fault in faults))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/faults", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=900.0, metavar="SECONDS", help="of a trial, which then fails")
    return parser.parse_args(arguments)


def selected(names: Sequence[str] | None, faults: Sequence[Fault]) -> list[Fault]:
    """Returns the faults of these names, in the order of the table. Raises `BadInput` for a name that is not one."""
    known = [fault.name for fault in faults]
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise BadInput("only", f"{name!r} is not a fault", f"{meant}The faults are {', '.join(known)}")
    return [fault for fault in faults if not names or fault.name in names]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = [f"| {row.fault.title} | {row.fault.summary(row.outcomes)} | {row.seconds / 60:.1f} |" for row in rows]
    return "\n".join(["| fault | what was seen | minutes |", "|---|---|---|", *lines])


def as_json(row: Row) -> dict[str, str | int]:
    """Returns a row for `--json`."""
    passed = sum(outcome.passed for outcome in row.outcomes)
    note = row.fault.summary(row.outcomes)
    return {"fault": row.fault.name, "passed": passed, "tried": len(row.outcomes), "note": note}


def main(arguments: Sequence[str] | None = None) -> int:
    known = all_faults()
    given = parsed(arguments, known)
    try:
        faults = selected(given.only, known)
        if not given.limit > 0:
            raise BadInput("limit", f"{given.limit} is not positive", "Use a number of seconds")
        if given.json is not None:
            require_writable("json", given.json)
        work = given.work.absolute()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trial under way is to end with this process
        with locked(work, "work"), disk_errors(work, "work", "finished trials are kept"):
            results, rows = Results(work / RESULTS), []
            options = {"quick": given.quick, "work": work, "results": results, "limit": given.limit}
            for fault in faults:
                rows.append(run_fault(fault, code_digest(fault, known), tell=tell, **options))
                if given.json is not None:
                    save_json(given.json, [as_json(row) for row in rows])
    except BadInput as error:
        print(f"error: --{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished trials are kept. The same command goes on", file=sys.stderr)
        return 130
    print(table(rows))
    failures = [line for row in rows for line in row.failures]
    if failures:
        print("\nfailed (what they left is in the work folder):", *failures, sep="\n")
    return 1 if failures else 0


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
