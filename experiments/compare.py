"""Compare: `python experiments/compare.py RUN ... [--out compare.html] [--json FILE]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.compare import compare_runs

if __name__ == "__main__":
    exit_with(compare_runs)
