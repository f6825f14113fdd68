"""Train a tokenizer: `python experiments/train_tokenizer.py [PRESET] [--flag VALUE ...]`; `--help` lists them."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.train_tokenizer import train_tokenizer

if __name__ == "__main__":
    exit_with(train_tokenizer, several=True)
