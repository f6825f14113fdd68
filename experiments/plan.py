"""Plan: `python experiments/plan.py PRESET --target v5e:16x16 [--json FILE]`; `--help` lists the flags."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.plan import plan

if __name__ == "__main__":
    exit_with(plan)
