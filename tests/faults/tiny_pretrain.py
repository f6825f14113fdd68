"""The command of a newcomer: a recipe of their own beside the package's. Some variables leave time for accidents.

`SECONDS_A_STEP` makes every step slow. `HOLD_AFTER` (a number of steps) keeps the step after it from its end: there is
a file `HOLD.held` from then on, and the step goes on when there is a file `HOLD.go`. `HOLD_EVALUATION` (a step) does so
in the evaluation of that step. `RAISE_AFTER` (a number of steps) fails the step after it. `LOST_SECONDS` is how long a
process waits for a sign of life of another.
"""

import os
import time
from pathlib import Path

from tiny import tiny

from umd_eqx.commands.cli import main
from umd_eqx.core import peers
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.training import loop

if __name__ == "__main__":
    step = loop.train_step
    measure = loop.Evaluations.measure
    seconds, after, hold = (os.environ.get(name) for name in ("SECONDS_A_STEP", "HOLD_AFTER", "HOLD"))
    fails = os.environ.get("RAISE_AFTER")
    evaluated = os.environ.get("HOLD_EVALUATION")

    def wait():
        Path(f"{hold}.held").touch()
        while not Path(f"{hold}.go").exists():
            time.sleep(0.01)

    def slow_measure(self, names, state, phase):
        if evaluated and names and int(state.step) == int(evaluated):
            wait()
        return measure(self, names, state, phase)

    def slow_step(parts, state, batch):
        time.sleep(float(seconds or 0))
        if after and int(state.step) == int(after):
            wait()
        if fails and int(state.step) == int(fails):
            raise RuntimeError("made to fail")
        return step(parts, state, batch)

    peers.LOST_SECONDS = float(os.environ.get("LOST_SECONDS", peers.LOST_SECONDS))
    loop.train_step, loop.Evaluations.measure = slow_step, slow_measure
    main({**PRETRAIN, "tiny": tiny})
