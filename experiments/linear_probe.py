"""Linear probe: `python experiments/linear_probe.py --run RUN [--flag VALUE ...]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.linear_probe import linear_probe

if __name__ == "__main__":
    exit_with(linear_probe, several=True)
