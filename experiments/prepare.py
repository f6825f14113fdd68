"""Prepare images: `python experiments/prepare.py --src DIR --out DATA_DIR [--name NAME] [--size 64]`; see `--help`."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.prepare import prepare_data

if __name__ == "__main__":
    exit_with(prepare_data)
