"""Supervised training: `python experiments/supervised.py [PRESET] [--flag VALUE ...]`; `--help` lists both."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.supervised import supervised

if __name__ == "__main__":
    exit_with(supervised, several=True)
