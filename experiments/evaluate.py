"""Measure: `python experiments/evaluate.py --run RUN [--benchmark NAME] [--flag VALUE ...]`; `--help` lists them."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.evaluate import evaluate

if __name__ == "__main__":
    exit_with(evaluate)
