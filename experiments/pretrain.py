"""Pre-train: `python experiments/pretrain.py [PRESET] [--flag VALUE ...]`; `--help` lists both."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import main
    from umd_eqx.recipes.pretrain import PRETRAIN

if __name__ == "__main__":
    main(PRETRAIN)
