"""Export weights: `python experiments/export.py --run RUN --out FILE.safetensors`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.export import export_weights

if __name__ == "__main__":
    exit_with(export_weights)
