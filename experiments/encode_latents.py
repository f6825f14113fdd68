"""Encode latents: `python experiments/encode_latents.py --tokenizer RUN --out DIR [--flag VALUE ...]`; see `--help`."""

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    from umd_eqx.commands.cli import exit_with
    from umd_eqx.commands.encode_latents import encode_latents

if __name__ == "__main__":
    exit_with(encode_latents, several=True)
