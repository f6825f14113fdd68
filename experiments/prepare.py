"""Prepare images: `python experiments/prepare.py --src DIR --out DATA_DIR --name imagenet2012 [--size 64]`.

`--help` lists all flags.
"""

from umd_eqx.training.signals import interruptible_imports

if __name__ == "__main__":  # the processes that it starts import this file, but not these
    with interruptible_imports():
        from umd_eqx.commands.cli import exit_with
        from umd_eqx.commands.prepare import prepare_data

    exit_with(prepare_data)
