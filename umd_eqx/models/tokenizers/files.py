"""Trained tokenizers on disk: weights, card, and the statistics that are measured when training is finished."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from umd_eqx.core.cards import CHECKSUM, is_intact, open_card, read_weights, require_described, save_weights
from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import Image
from umd_eqx.models.finished import FinishedRun
from umd_eqx.models.tokenizers.base import AbstractTokenizer, with_statistics

FORMAT = 2
"""The format of the card. Later formats are rejected. Cards of format 1 have no checksum and are read without one."""

CARD_FIELDS = ("format", "kind", "model", "channels", "shift", "scale", "parameters", "sha256", CHECKSUM)
"""The entries of a card besides the facts passed by the caller."""

TOKENIZER_FILE = "tokenizer.safetensors"
"""The file, with its card, that `experiments/train_tokenizer.py` writes to its run directory."""

STATISTICS_IMAGES = 10_000
"""The number of training images from which the mean and standard deviation of the latents are measured."""


def write_tokenizer(
    tokenizer: AbstractTokenizer,
    description: Any,
    path: str | os.PathLike[str],
    facts: Mapping[str, Any],
    *,
    half: bool = False,
) -> Path:
    """Writes the weights as safetensors, and a JSON card beside them; returns the path of the card.

    **Arguments:**

    - `description`: the configuration from which it was built, as plain data (`umd_eqx.recipes.dump.dump`).
    - `facts`: further entries of the card.
    - `half`: whether to store the parameters in float16; they are read back as float32.

    **Raises:** `OSError` if a file cannot be written.
    """
    card = {
        "format": FORMAT,
        "kind": "tokenizer",
        "model": description,
        "channels": tokenizer.channels,
        "shift": tokenizer.shift,
        "scale": tokenizer.scale,
        **facts,
    }
    return save_weights(path, tokenizer, card, dtype=np.float16 if half else np.float32, seal=True)


def is_written(run_dir: Path, step: int) -> bool:
    """Whether a run directory holds the tokenizer of `step`, complete and with its card."""
    path, field = run_dir / TOKENIZER_FILE, "run_dir"
    try:
        with open_card(path, field, "") as card:
            if card.get("step") != step or not is_intact(card):
                return False
        require_described(path, read_weights(path, field), card["sha256"], field, "")
    except (BadInput, KeyError):
        return False
    return True


def finish_tokenizer(run: FinishedRun) -> Path | None:
    """Writes the tokenizer of a run to its run directory, with the shift and scale that standardise its latents.

    The shift is the mean of z over many training images and the scale is 1 over its standard deviation. Networks are
    then trained on latents of mean 0 and variance 1 (Rombach et al. 2022, appendix G, who do not subtract the mean).
    Returns the path of the weights, or None if they are already there.
    """
    if is_written(run.directory, run.step):
        return None
    step, tokenizer = run.model()
    assert isinstance(tokenizer, AbstractTokenizer)
    mean, std = mean_and_deviation(run.mean(latent_moments, tokenizer, STATISTICS_IMAGES))
    facts = {"step": step, "data": run.spec.name, "size": run.config["data"]["size"], "latent_std": std}
    path = run.directory / TOKENIZER_FILE
    write_tokenizer(with_statistics(tokenizer, mean, 1.0 / std), run.config["model"], path, facts)
    return path


def latent_moments(tokenizer: AbstractTokenizer, image: Image) -> Float[Array, "2"]:
    """Returns the first and second moment of z for one image, including the variance of the posterior."""
    posterior = tokenizer.encode_raw(image)
    variance = 0.0 if posterior.logvar is None else jnp.mean(jnp.exp(posterior.logvar))
    return jnp.stack([jnp.mean(posterior.mean), jnp.mean(posterior.mean**2) + variance])


def mean_and_deviation(moments: Float[np.ndarray, "2"]) -> tuple[float, float]:
    """Returns mean and standard deviation, given the first two moments. The deviation of a constant is set to 1."""
    mean, square = moments
    std = math.sqrt(max(square - mean**2, 0.0))
    return float(mean), std if std > 1e-6 else 1.0
