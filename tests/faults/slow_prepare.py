"""The command as a user has it, with a pause after each image."""

import os
import time

from umd_eqx.data.preparing import shards

# Also in the processes that it starts, which import this file.
stored = shards.stored


def slow(*arguments):
    time.sleep(float(os.environ["SECONDS_AN_IMAGE"]))
    return stored(*arguments)


shards.stored = slow

if __name__ == "__main__":
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.prepare import prepare_data

    exit_with(prepare_data)
