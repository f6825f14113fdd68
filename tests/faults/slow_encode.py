"""The command as a user has it. The variables of `tiny_pretrain.py` leave time for accidents, a batch being a step."""

import itertools
import os
import time
from pathlib import Path

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.encode_latents import encode_latents
from umd_eqx.latents import encoding

if __name__ == "__main__":
    moments, batches = encoding._moments, itertools.count()
    seconds, after, hold = (os.environ.get(name) for name in ("SECONDS_A_STEP", "HOLD_AFTER", "HOLD"))

    def slow_moments(*arguments):
        time.sleep(float(seconds or 0))
        if after and next(batches) == int(after):
            Path(f"{hold}.held").touch()
            while not Path(f"{hold}.go").exists():
                time.sleep(0.01)
        return moments(*arguments)

    encoding._moments = slow_moments
    exit_with(encode_latents)
