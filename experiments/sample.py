"""Sample: `python experiments/sample.py [--run RUN] [--label N] [--flag VALUE ...]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.sample import sample

if __name__ == "__main__":
    exit_with(sample)
