"""Commands on a network of latents that takes seconds: `python tests/tiny_latents.py pretrain|finetune WORDS ...`."""

import dataclasses
import sys

from umd_eqx.commands.cli import exit_with, main
from umd_eqx.commands.finetune import finetune
from umd_eqx.eval import Denoising
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.finetune import latent_umd_ft
from umd_eqx.recipes.pretrain import latent_umd


def small(config: Config) -> Config:
    """Two steps with a checkpoint and an evaluation after each, of a network that is compiled soon."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, variant="mu/1"),
        data=dataclasses.replace(config.data, batch_size=20, eval_batch_size=8),
        optim=dataclasses.replace(config.optim, steps=2),
        eval={"denoising": Denoising(every=1, images=8, pictures=1, levels=(0.5,), shown_levels=(0.5,))},
        checkpoint=dataclasses.replace(config.checkpoint, every=1),
        log=dataclasses.replace(config.log, every=1),
    )


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "pretrain":
        main({"latent-umd": lambda: small(latent_umd())}, words)
    exit_with(lambda _: finetune(words, {"latent-umd-ft": lambda: small(latent_umd_ft())}))
