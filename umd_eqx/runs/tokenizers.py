"""Loads and saves trained tokenizers, and describes the one that a configuration names."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import equinox as eqx
import jax

from umd_eqx.core.cards import card_of, is_intact, open_card, read_weights, require_described
from umd_eqx.core.errors import BadInput
from umd_eqx.core.exports import local_weights
from umd_eqx.core.hashes import sha256_of_json, sha256_of_weights
from umd_eqx.core.programs import abstract
from umd_eqx.core.tensors import fill, named_leaves, named_settings
from umd_eqx.core.types import LatentSpec
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.tokenizers.base import AbstractTokenizer, with_statistics
from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, WEIGHTS, is_diffusers, read_diffusers
from umd_eqx.models.tokenizers.files import CARD_FIELDS, FORMAT, TOKENIZER_FILE, write_tokenizer
from umd_eqx.models.tokenizers.vae import SD_V1, SD_V3, AutoencoderKL
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump, load
from umd_eqx.runs.card_checks import MAX_RESOLUTIONS, require_sane_tokenizer

SHIPPED = {
    name: Path(__file__).parents[1] / "weights" / f"{name}.safetensors" for name in ("fashion-kl", "fashion-fsq")
}
"""The small tokenizers included in the package, trained on the embedded images, by name."""

MAX_FACTOR = 2**MAX_RESOLUTIONS
"""An image side, in pixels, that is a multiple of the downsampling factor of every valid card."""

SOURCES_HINT = "Pass a run of train_tokenizer.py, an export, the folder of a Stable Diffusion VAE, or one of "


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTokenizer:
    """A trained tokenizer, its fingerprint and a one-line description.

    `config` is the configuration that built it, and `facts` are the other entries of its card. For a tokenizer in the
    format of diffusers, `config` is None and `facts` is empty.
    """

    tokenizer: AbstractTokenizer
    digest: str
    title: str
    config: AbstractModelConfig | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> LatentSpec:
        """The description of its latents."""
        return LatentSpec(self.tokenizer.factor, self.tokenizer.latent_channels, self.digest)


class Latents(NamedTuple):
    """The tokenizer of a network: its name, the description of its latents, and the tokenizer itself."""

    source: str
    spec: LatentSpec
    tokenizer: AbstractTokenizer


def load_tokenizer(source: str, field: str = "tokenizer") -> LoadedTokenizer:
    """Loads a trained tokenizer. Nothing is downloaded but from a URL that is given, and no pickle is loaded.

    **Arguments:**

    - `source`: one of: "fashion-kl" or "fashion-fsq", which are included in the package; a run directory of
        `experiments/train_tokenizer.py`; a safetensors file with a card, also at a URL, or one of diffusers; a folder
        with the files of diffusers' AutoencoderKL, or with a subfolder `vae` that holds them; a repository, or a
        folder of one, in the Hugging Face cache (`$HF_HUB_CACHE`, `$HF_HOME`), such as stabilityai/sd-vae-ft-mse or
        stable-diffusion-v1-5/stable-diffusion-v1-5/vae.
    - `field`: the field that named it.

    **Raises:** `BadInput` if `source` is none of these, cannot be read, or does not match its card.
    """
    location = SHIPPED.get(source) or local_weights(source, field).expanduser()
    if not location.exists():
        location = _cached(source, field)
    if location.is_dir() and (location / TOKENIZER_FILE).exists():
        location = location / TOKENIZER_FILE
    elif is_diffusers(location):
        tokenizer = read_diffusers(location, field)
        return LoadedTokenizer(tokenizer, fingerprint(tokenizer), f"{source}, {_shape_of(tokenizer)}")
    elif location.is_dir():
        some = (location / "config.json").exists()
        problem = f"{location} holds {'a run without a finished' if some else 'no'} tokenizer"
        raise BadInput(field, problem, SOURCES_HINT + ", ".join(SHIPPED))
    return _from_card(location, source, field)


def load_latents(source: str, *, known: Latents | None = None) -> Latents:
    """Loads the tokenizer `source`, or returns `known` if it is that one. Raises `BadInput` naming `tokenizer`."""
    if known is not None and known.source == source:
        return known
    loaded = load_tokenizer(source)
    return Latents(source, loaded.spec, loaded.tokenizer)


def save_tokenizer(
    tokenizer: AbstractTokenizer,
    config: AbstractModelConfig,
    path: str | os.PathLike[str],
    facts: Mapping[str, Any],
    *,
    half: bool = False,
) -> Path:
    """Writes the weights as safetensors with a JSON card beside them; returns the path of the card.

    `config` is the configuration that built it; `facts` are copied into the card. `half` stores the parameters in
    float16; they are read back as float32. Raises `OSError` if writing fails.
    """
    return write_tokenizer(tokenizer, dump(config), path, facts, half=half)


def tokenizer_shapes(config: Config) -> AbstractTokenizer | None:
    """The shapes of a resolved configuration's tokenizer; None for a network trained on pixels.

    If the tokenizer is not on this machine, the shapes of the Stable Diffusion VAE with the same latents are returned.
    Raises `BadInput` as `load_tokenizer` does if there is no such VAE.
    """
    if config.tokenizer is None:
        return None
    try:
        return abstract(load_tokenizer(config.tokenizer).tokenizer)
    except BadInput:
        published = {(size.factor, size.latent_channels): size for size in (SD_V1, SD_V3)}
        latent = config.latent
        if latent is None or (latent.factor, latent.channels) not in published:
            raise
        size = published[latent.factor, latent.channels]
        return eqx.filter_eval_shape(functools.partial(AutoencoderKL.init, size), key=jax.random.key(0))


def fingerprint(tokenizer: AbstractTokenizer) -> str:
    """A fingerprint of everything that latents depend on, independent of the file: 32 hexadecimal digits.

    The first 16 hash the weights, the shift and the scale; the others hash the settings, such as the tokenizer's kind,
    channels, levels and groups. `umd_eqx.core.types.same_tokenizer` handles fingerprints with only the first part.
    """
    weights = sha256_of_weights(named_leaves(tokenizer), f"{tokenizer.shift} {tokenizer.scale}".encode())
    return weights[:16] + sha256_of_json(named_settings(tokenizer))[:16]


def _from_card(location: Path, source: str, field: str) -> LoadedTokenizer:
    anew = "Train or export it again"
    weights = read_weights(location, field)
    with open_card(location, field, "Train or export the tokenizer again", newest=FORMAT) as card:
        if card.get("kind") != "tokenizer":
            raise BadInput(field, f"{location} holds no tokenizer", SOURCES_HINT + ", ".join(SHIPPED))
        config, digest = load(card["model"]), card["sha256"]
        channels, shift, scale = card["channels"], card["shift"], card["scale"]
        require_sane_tokenizer(config, channels, shift, scale)
        config.validate(MAX_FACTOR)
        make = functools.partial(config.build, 0, channels, 1)
        like = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))
    require_described(location, weights, digest, field, anew)
    filled = fill(like, weights.tensors, location, field, anew)
    if card["format"] > 1 and not is_intact(card):
        problem = f"{card_of(location)} was changed after it was written"
        raise BadInput(field, problem, "Train or export the tokenizer again")
    tokenizer = with_statistics(filled, float(shift), float(scale))
    title = f"{source}, {config.title}, {_shape_of(tokenizer)}"
    facts = {name: value for name, value in card.items() if name not in CARD_FIELDS}
    return LoadedTokenizer(tokenizer, fingerprint(tokenizer), title, config, facts)


def _cached(source: str, field: str) -> Path:
    """The folder of a tokenizer in the Hugging Face cache, for `owner/name` or `owner/name/folder`.

    If there are several snapshots, the newest that holds a tokenizer is used, since others may hold only other parts of
    the repository. Raises `BadInput` if none does.
    """
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", source)
    repository, folder = (source, "") if named is None else (named[1], named[2].strip("/"))
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.iterdir(), key=lambda snapshot: snapshot.stat().st_mtime) if snapshots.is_dir() else []
    for snapshot in reversed(found):
        location = snapshot / folder
        if any((location / file).exists() for file in (TOKENIZER_FILE, WEIGHTS, f"vae/{WEIGHTS}")):
            return location
    hint = SOURCES_HINT + ", ".join(SHIPPED)
    if named is not None:
        files = " ".join(str(PurePosixPath(folder, name)) for name in (CONFIG, WEIGHTS))
        fetch = f"`pip install huggingface_hub && hf download {repository} {files}` downloads it"
        elsewhere = "" if folder else f" (if it is in a folder of the repository, name it {repository}/FOLDER)"
        hint = f"{fetch}{elsewhere}. Or: {hint}"
    raise BadInput(field, f"there is no {source} on this machine", hint)


def _shape_of(tokenizer: AbstractTokenizer) -> str:
    return f"{tokenizer.factor} x {tokenizer.factor} pixels to {tokenizer.latent_channels} numbers"
