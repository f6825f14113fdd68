"""Fine-tune a classifier: `python experiments/finetune_classifier.py --from RUN [--flag VALUE ...]`; see `--help`."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.finetune_classifier import finetune_classifier

if __name__ == "__main__":
    exit_with(finetune_classifier, several=True)
