"""The command of a newcomer: a recipe of their own beside the package's. Some variables leave time for accidents.

`SECONDS_A_STEP` makes every step slow. `HOLD_AFTER` (a number of steps) keeps the step after it from its end: there is
a file `HOLD.held` from then on, and the step goes on when there is a file `HOLD.go`. `HOLD_EVALUATION` (a step) does so
in the evaluation of that step, `HOLD_SAVE` before anything of its checkpoint is written, and `HOLD_SEAL` when all of it
is but its checksums. `HOLD.batches` has a line for each step that was begun, with the SHA-256 of its batch, if
`KEEP_BATCHES` is set. With `ONE_PAGE`, the web page is written at the end alone. `RAISE_AFTER` (a number of steps)
fails the step after it. `LOST_SECONDS` is how long a process waits for a sign of life of another.
"""

import os
import time
from pathlib import Path

from faults.tiny import tiny
from faults.tiny_methods import METHODS, keep_batch

from umd_eqx.commands.cli import main
from umd_eqx.core import peers
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.training import checkpoint, loop

HOLD = os.environ.get("HOLD")


def wait() -> None:
    Path(f"{HOLD}.held").touch()
    while not Path(f"{HOLD}.go").exists():
        time.sleep(0.01)


def hold_step() -> None:
    step = loop.train_step
    names = ("SECONDS_A_STEP", "HOLD_AFTER", "KEEP_BATCHES", "RAISE_AFTER")
    seconds, after, kept, fails = (os.environ.get(name) for name in names)

    def slow_step(parts, state, batch):
        if kept:
            keep_batch(Path(f"{HOLD}.batches"), state, batch)
        time.sleep(float(seconds or 0))
        if after and int(state.step) == int(after):
            wait()
        if fails and int(state.step) == int(fails):
            raise RuntimeError("made to fail")
        return step(parts, state, batch)

    loop.train_step = slow_step


def hold_evaluation() -> None:
    measure, evaluated = loop.Evaluations.measure, os.environ.get("HOLD_EVALUATION")

    def slow_measure(self, names, state, phase):
        if evaluated and names and int(state.step) == int(evaluated):
            wait()
        return measure(self, names, state, phase)

    loop.Evaluations.measure = slow_measure


def hold_save() -> None:
    save, digests = checkpoint.Checkpoints.save, checkpoint._digests
    saved, sealed = os.environ.get("HOLD_SAVE"), os.environ.get("HOLD_SEAL")

    def slow_save(self, step, state):
        if saved and step == int(saved):
            wait()
        return save(self, step, state)

    def slow_digests(folder):
        if folder.name == sealed and folder.parent.name == checkpoint.FOLDER:
            wait()
        return digests(folder)

    checkpoint.Checkpoints.save, checkpoint._digests = slow_save, slow_digests


if __name__ == "__main__":
    hold_step()
    hold_evaluation()
    hold_save()
    peers.LOST_SECONDS = float(os.environ.get("LOST_SECONDS", peers.LOST_SECONDS))
    if os.environ.get("ONE_PAGE"):
        loop.write_webpage = lambda run: run.path / "report.html"
    main({**PRETRAIN, "tiny": tiny, **METHODS})
