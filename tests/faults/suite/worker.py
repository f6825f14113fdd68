"""The process that runs the trials of one fault: `-m faults.suite.worker MODULE QUICK FOLDER DESCRIPTOR`.

It writes a line to the descriptor when it is ready. It then reads names of trials from stdin, a line each, and writes a
line of JSON when a trial is over. The runner can end it, with all processes that it started, whatever a trial hangs in.
"""

import importlib
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from faults.suite.base import Outcome, Trial


def attempt(trial: Trial, folder: Path) -> Outcome:
    """Runs a trial in an empty folder, which is kept if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"--- {trial.name}", flush=True)
    try:
        outcome = trial.run(folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # `pytest.fail` and `sys.exit`, too
        traceback.print_exc()
        said = str(error).strip().splitlines()
        outcome = Outcome(False, f"{type(error).__name__}: {said[0] if said else ''}"[:300])
    print(f"--- {trial.name}: {outcome}", flush=True)
    if outcome.passed:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def main(module: str, quick: str, folder: str, descriptor: str) -> None:
    trials = {trial.name: trial for trial in importlib.import_module(module).FAULT.trials(quick == "quick")}
    with os.fdopen(int(descriptor), "w") as told:
        print("ready", file=told, flush=True)
        for line in sys.stdin:
            outcome = attempt(trials[line.strip()], Path(folder) / line.strip())
            plain = {key: float(x) for key, x in outcome.figures.items()}
            print(json.dumps([bool(outcome.passed), outcome.note, plain]), file=told, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
