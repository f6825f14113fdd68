"""Trained tokenizers, wherever they lie, and what a configuration must know of the one that it names."""

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
from umd_eqx.core.hashes import sha256_of_json, sha256_of_weights
from umd_eqx.core.programs import abstract
from umd_eqx.core.tensors import fill, named_leaves, named_settings
from umd_eqx.core.types import LatentSpec
from umd_eqx.models.tokenizers.base import AbstractTokenizer, with_statistics
from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, WEIGHTS, is_diffusers, read_diffusers
from umd_eqx.models.tokenizers.files import FORMAT, OWN, TRAINED, write_tokenizer
from umd_eqx.models.tokenizers.vae import SD_V1, SD_V3, AutoencoderKL
from umd_eqx.models.vit.variants import AbstractModelConfig
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump, load
from umd_eqx.runs.card_checks import MOST_SIZES, require_sane_tokenizer

SHIPPED = {
    name: Path(__file__).parents[1] / "weights" / f"{name}.safetensors" for name in ("fashion-kl", "fashion-fsq")
}
"""Small tokenizers of the embedded images that come with the package, by name."""

LARGEST_FACTOR = 2**MOST_SIZES
"""Pixels of a side that any tokenizer of a card makes a whole number of latents of."""

WAY_OUT = "Give a run of train_tokenizer.py, an export, the folder of a Stable Diffusion VAE, or one of "


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTokenizer:
    """A trained tokenizer, its fingerprint, and one line for a person.

    `config` is what it was built by and `facts` what else its card says; None and nothing for one of diffusers.
    """

    tokenizer: AbstractTokenizer
    digest: str
    title: str
    config: AbstractModelConfig | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> LatentSpec:
        """What it makes of images."""
        return LatentSpec(self.tokenizer.factor, self.tokenizer.latent_channels, self.digest)


class Latents(NamedTuple):
    """What a network's latents are made by: as it is named, what it makes, and the tokenizer itself."""

    source: str
    spec: LatentSpec
    tokenizer: AbstractTokenizer


def load_tokenizer(source: str, field: str = "--tokenizer") -> LoadedTokenizer:
    """A trained tokenizer.

    **Arguments:**

    - `source`: "fashion-kl" or "fashion-fsq", which come with the package; a run directory of
        `experiments/train_tokenizer.py`; a safetensors file with its card, ours or one of diffusers; a folder with the
        files of diffusers' AutoencoderKL, or with a subfolder `vae` that has them; or a repository, or a folder of
        one, that lies in the cache of the Hugging Face hub (`$HF_HUB_CACHE`, `$HF_HOME`), such as
        stabilityai/sd-vae-ft-mse or stable-diffusion-v1-5/stable-diffusion-v1-5/vae. Nothing is fetched.
    - `field`: the flag that named it.

    **Raises:** `BadInput` for what is no such thing, cannot be read, or does not fit its card. No pickle is loaded.
    """
    location = SHIPPED.get(source) or Path(source).expanduser()
    if not location.exists():
        location = _cached(source, field)
    if location.is_dir() and (location / TRAINED).exists():
        location = location / TRAINED
    elif is_diffusers(location):
        tokenizer = read_diffusers(location, field)
        return LoadedTokenizer(tokenizer, fingerprint(tokenizer), f"{source}, {_shape_of(tokenizer)}")
    elif location.is_dir():
        some = (location / "config.json").exists()
        problem = f"{location} holds {'a run without a finished' if some else 'no'} tokenizer"
        raise BadInput(field, problem, WAY_OUT + ", ".join(SHIPPED))
    return _from_card(location, source, field)


def load_latents(source: str, *, known: Latents | None = None) -> Latents:
    """The tokenizer of that name, `known` where it is that; else loaded. Raises `BadInput` naming `--tokenizer`."""
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
    """Writes the weights as safetensors, and a JSON card beside them; returns the path of the card.

    `config` is what it was built by; `facts` go into the card as they are. `half` keeps the parameters in float16, read
    back as float32. Raises `OSError` if the disk refuses.
    """
    return write_tokenizer(tokenizer, dump(config), path, facts, half=half)


def tokenizer_shapes(config: Config) -> AbstractTokenizer | None:
    """The shapes of a resolved configuration's tokenizer; None for a network of pixels.

    Of one that is not on this machine, those of the Stable Diffusion network with such latents, where there is one.
    Raises `BadInput` as `load_tokenizer` where there is none.
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
    """A fingerprint of all that a latent depends on, whatever file it lies in: 32 hexadecimal digits.

    The first 16 are of the weights, the shift and the scale, the others of every setting: the tokenizer's kind, its
    channels, levels, groups, ... See `umd_eqx.core.types.same_tokenizer` for those that have the first part alone.
    """
    weights = sha256_of_weights(named_leaves(tokenizer), f"{tokenizer.shift} {tokenizer.scale}".encode())
    return weights[:16] + sha256_of_json(named_settings(tokenizer))[:16]


def _from_card(location: Path, source: str, field: str) -> LoadedTokenizer:
    anew = "Train or export it anew"
    weights = read_weights(location, field)
    with open_card(location, field, "Train or export the tokenizer anew", newest=FORMAT) as card:
        if card.get("kind") != "tokenizer":
            raise BadInput(field, f"{location} holds no tokenizer", WAY_OUT + ", ".join(SHIPPED))
        config, digest = load(card["model"]), card["sha256"]
        channels, shift, scale = card["channels"], card["shift"], card["scale"]
        require_sane_tokenizer(config, channels, shift, scale)
        config.validate(LARGEST_FACTOR)
        make = functools.partial(config.build, 0, channels, 1)
        like = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))
    require_described(location, weights, digest, field, anew)
    filled = fill(like, weights.tensors, location, field, anew)
    if card["format"] > 1 and not is_intact(card):
        problem = f"{card_of(location)} was changed after it was written"
        raise BadInput(field, problem, "Train or export the tokenizer anew")
    tokenizer = with_statistics(filled, float(shift), float(scale))
    title = f"{source}, {config.title}, {_shape_of(tokenizer)}"
    facts = {name: value for name, value in card.items() if name not in OWN}
    return LoadedTokenizer(tokenizer, fingerprint(tokenizer), title, config, facts)


def _cached(source: str, field: str) -> Path:
    """The folder of a tokenizer in the hub's cache, for `owner/name` or `owner/name/folder`.

    Of several snapshots the newest that has one: others may hold only other parts of the repository. Raises `BadInput`
    where there is none.
    """
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", source)
    repository, folder = (source, "") if named is None else (named[1], named[2].strip("/"))
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.iterdir(), key=lambda snapshot: snapshot.stat().st_mtime) if snapshots.is_dir() else []
    for snapshot in reversed(found):
        location = snapshot / folder
        if any((location / file).exists() for file in (TRAINED, WEIGHTS, f"vae/{WEIGHTS}")):
            return location
    hint = WAY_OUT + ", ".join(SHIPPED)
    if named is not None:
        files = " ".join(str(PurePosixPath(folder, name)) for name in (CONFIG, WEIGHTS))
        fetch = f"`pip install huggingface_hub && hf download {repository} {files}` fetches it"
        elsewhere = "" if folder else f" (if it lies in a folder of the repository, name it {repository}/FOLDER)"
        hint = f"{fetch}{elsewhere}. Or: {hint}"
    raise BadInput(field, f"there is no {source} on this machine", hint)


def _shape_of(tokenizer: AbstractTokenizer) -> str:
    return f"{tokenizer.factor} x {tokenizer.factor} pixels to {tokenizer.latent_channels} numbers"
