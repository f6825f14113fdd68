"""A trained tokenizer on the disk: its weights, its card, and what is measured when its training is over."""

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
"""Of the card. A reader refuses a larger one. Cards of format 1 have no checksum, and are read without."""

OWN = ("format", "kind", "model", "channels", "shift", "scale", "parameters", "sha256", CHECKSUM)
"""What a card says by itself, besides the facts that it is given."""

TRAINED = "tokenizer.safetensors"
"""What `experiments/train_tokenizer.py` leaves in its run directory, with its card."""

MEASURED = 10_000
"""Training images by which the latents' mean and standard deviation are taken."""


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

    - `description`: the configuration that it was built by, as plain data (`umd_eqx.recipes.dump.dump`).
    - `facts`: go into the card as they are.
    - `half`: keeps the parameters in float16, read back as float32.

    **Raises:** `OSError` if the disk refuses.
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
    """Whether the tokenizer that a run has at `step` lies in its directory, whole and with its card."""
    path, field = run_dir / TRAINED, "--run-dir"
    try:
        with open_card(path, field, "") as card:
            if card.get("step") != step or not is_intact(card):
                return False
        require_described(path, read_weights(path, field), card["sha256"], field, "")
    except (BadInput, KeyError):
        return False
    return True


def finish_tokenizer(run: FinishedRun) -> Path | None:
    """Writes the tokenizer of a run into its directory, with the shift and scale that its latents need.

    Of z, drawn for many training images, the mean becomes the shift and 1 over the standard deviation the scale, so
    that a network is trained on numbers of mean 0 and variance 1 (Rombach et al. 2022, appendix G, who leave the mean
    as it is). Returns the path of the weights; None where they lie there already.
    """
    if is_written(run.directory, run.step):
        return None
    step, tokenizer = run.model()
    assert isinstance(tokenizer, AbstractTokenizer)
    mean, std = mean_and_deviation(run.mean(latent_moments, tokenizer, MEASURED))
    facts = {"step": step, **run.facts, "latent_std": std}
    place = run.directory / TRAINED
    write_tokenizer(with_statistics(tokenizer, mean, 1.0 / std), run.description, place, facts)
    return place


def latent_moments(tokenizer: AbstractTokenizer, image: Image) -> Float[Array, "2"]:
    """The first and the second moment of the z of one image, as it is drawn: the posterior's variance is counted."""
    posterior = tokenizer.encode_raw(image)
    variance = 0.0 if posterior.logvar is None else jnp.mean(jnp.exp(posterior.logvar))
    return jnp.stack([jnp.mean(posterior.mean), jnp.mean(posterior.mean**2) + variance])


def mean_and_deviation(moments: Float[np.ndarray, "2"]) -> tuple[float, float]:
    """Mean and standard deviation from the first two moments. The deviation is 1 where all numbers are alike."""
    mean, square = moments
    std = math.sqrt(max(square - mean**2, 0.0))
    return float(mean), std if std > 1e-6 else 1.0
