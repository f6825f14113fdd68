"""Statistics of real images: `python experiments/reference_statistics.py --data.dir DIR --data.size 64 --out FILE`.

`--help` lists all flags.
"""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.reference_statistics import make_statistics

if __name__ == "__main__":
    exit_with(make_statistics)
