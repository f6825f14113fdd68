"""Compares this package with the authors' numbers: `python tests/golden.py DIR`.

DIR holds files of the format of tests/golden_data/README.md, by their names there; cases are found by the names in
them. Prints a line for each group: comparisons, the largest error in the group's own measure, the tolerance. Exits
with 0 if all is within, 1 if something is out, 2 if the folder or a file cannot be used.
"""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where the numbers were made; an accelerator rounds float32 products

from golden_cases import GROUPS
from golden_cases.base import Folder, GoldenError, Result, run_group

_WORST = 5  # of a failed group are named


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="golden.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR", help="folder of golden files, such as tests/golden_data")
    folder_name = parser.parse_args(arguments).folder
    results = []
    try:
        folder = Folder(folder_name)
        print(f"{'group':<38} {'comparisons':>11} {'largest error':>13} {'tolerance':>9}")
        for group in GROUPS:
            results.append(run_group(group, folder))
            print(_line(results[-1]), flush=True)
    except GoldenError as error:
        print(f"golden.py: {error}", file=sys.stderr)
        return 2
    for what in folder.skipped:
        print(f"not compared: {what}")
    return int(any(result.status == "FAIL" for result in results))


def _line(result: Result) -> str:
    group, count = result.group, len(result.comparisons)
    tolerance = f"{group.tolerance:.0e}" if group.tolerance else "exact"
    largest = f"{result.worst.error:.1e}" if result.worst else "-"
    line = f"{group.name:<38} {count or '-':>11} {largest:>13} {tolerance:>9}  {result.status}"
    if result.status == "no file":
        return line
    if result.status == "FAIL":
        out = sorted(result.comparisons, key=lambda comparison: -comparison.error)
        out = [comparison for comparison in out if comparison.error > group.tolerance]
        line += "".join(f"\n    {what}: {error:.3g}" for what, error in out[:_WORST])
        line += f"\n    and {len(out) - _WORST} more" if len(out) > _WORST else ""
    return line


if __name__ == "__main__":
    sys.exit(main())
