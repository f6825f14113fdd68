"""Beside the paper: `python experiments/table.py RUN ... [--markdown] [--json FILE]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.table import tabulate_runs

if __name__ == "__main__":
    exit_with(tabulate_runs)
