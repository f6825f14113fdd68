"""Probe each layer: `python experiments/layers.py --run RUN [--flag VALUE ...]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.layers import probe_layers

if __name__ == "__main__":
    exit_with(probe_layers)
