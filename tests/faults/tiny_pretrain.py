"""The command of a newcomer: a recipe of their own beside the package's. `SECONDS_A_STEP` leaves time for accidents."""

import os
import time

from tiny import tiny

from umd_eqx import loop
from umd_eqx.cli import main
from umd_eqx.presets import PRETRAIN

if __name__ == "__main__":
    step = loop.train_step

    def slow_step(*arguments):
        time.sleep(float(os.environ.get("SECONDS_A_STEP", "0")))
        return step(*arguments)

    loop.train_step = slow_step
    main({**PRETRAIN, "tiny": tiny})
