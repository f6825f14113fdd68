"""Fine-tune: `python experiments/finetune.py [PRESET] --from RUN [--flag VALUE ...]`; `--help` lists both."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.finetune import finetune

if __name__ == "__main__":
    exit_with(finetune, several=True)
