"""What a configuration names, each looked up once: its data, its tokenizer, stored latents, the weights to begin with.

A command resolves its configuration at its edge and hands on what it found; nothing behind it opens a file again.
"""

import dataclasses
import functools

from umd_eqx.core.types import DataSpec
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.latents.store import Manifest, check, source_hash
from umd_eqx.recipes.config import Config, DataConfig
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.runs.tokenizers import Latents, load_latents


class Data:
    """The data of a configuration: described when they are first asked about, opened when they are first read."""

    def __init__(self, config: DataConfig):
        self._config = config

    @functools.cached_property
    def spec(self) -> DataSpec:
        """What the data are. Raises `BadInput` as `DataConfig.describe` does."""
        return self._config.describe()

    @functools.cached_property
    def splits(self) -> tuple[SkipBroken, CountBroken]:
        """The images to train on and those to evaluate on. Raises `BadInput` as `DataConfig.open` does."""
        return self._config.open()


@dataclasses.dataclass(eq=False)
class Resolved:
    """A configuration, and everything that it names.

    - `config`: with `latent` filled in.
    - `data`: its images, opened when they are needed.
    - `latents`: its tokenizer; None for a network of pixels.
    - `stored`: what lies in its folder of stored latents; None where there is none.
    - `source`: the network to begin with, where it was loaded already; see `take_source`.
    """

    config: Config
    data: Data
    latents: Latents | None = None
    stored: Manifest | None = None
    source: Pretrained | None = None

    def take_source(self) -> Pretrained | None:
        """`source`, once: it is then forgotten, so that its weights take no memory beside those in training."""
        source, self.source = self.source, None
        return source


def resolve(config: Config, source: Pretrained | None = None, *, data: Data | None = None) -> Resolved:
    """Looks up what a configuration names.

    **Arguments:**

    - `config`: whatever is in `latent` is replaced by what its tokenizer makes of images.
    - `source`: the network to begin with; its tokenizer is taken where the configuration names the same.
    - `data`: those of the configuration, where they were looked at already.

    **Raises:** `BadInput` naming `--tokenizer` or `--data.latents` where one of them cannot be read, or they do not
    belong together or to the data.
    """
    data = Data(config.data) if data is None else data
    if config.tokenizer is None:
        return Resolved(config, data, source=source)
    latents = load_latents(config.tokenizer, known=None if source is None else source.latents)
    latent, manifest = latents.spec, None
    if config.data.latents is not None:
        manifest = Manifest.read(config.data.latents)
        check(
            manifest,
            digest=latents.spec.digest or "",
            shift=latents.tokenizer.shift,
            scale=latents.tokenizer.scale,
            size=config.data.size,
            area_min=config.data.area_min,
            flip=config.data.flip,
            source_hash=source_hash(data.splits[0]),
        )
        latent = latent._replace(stored=manifest.digest[:16])
    return Resolved(dataclasses.replace(config, latent=latent), data, latents, manifest, source)


def with_latents_of(recipe: Config, config: Config) -> Config:
    """A recipe with what `resolve` found for a configuration of the same tokenizer and latents; else as it is."""
    same = recipe.tokenizer == config.tokenizer and recipe.data.latents == config.data.latents
    return dataclasses.replace(recipe, latent=config.latent) if same else recipe
