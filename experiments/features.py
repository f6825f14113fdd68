"""Represent images: `python experiments/features.py --run RUN --data.dir DIR --out FILE`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.features import write_features

if __name__ == "__main__":
    exit_with(write_features)
