"""Train the classifier behind `fd_fashion`: `python experiments/train_classifier.py [--out FILE.safetensors]`."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.train_classifier import train_classifier

if __name__ == "__main__":
    exit_with(train_classifier, several=True)
