"""Resolves the references in a configuration: its data, its tokenizer, its stored latents and its initial weights.

A command resolves its configuration once and passes on the result, so no later code opens these files again.
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
    """The data of a configuration. The description is read and the images are opened on first use."""

    def __init__(self, config: DataConfig):
        self._config = config

    @functools.cached_property
    def spec(self) -> DataSpec:
        """The description of the data. Raises `BadInput` as `DataConfig.describe` does."""
        return self._config.describe()

    @functools.cached_property
    def digest(self) -> str | None:
        """The fingerprint of the data (`AbstractSource.digest`)."""
        return self._config.source.digest()

    @functools.cached_property
    def splits(self) -> tuple[SkipBroken, CountBroken]:
        """The training and evaluation images. Raises `BadInput` as `DataConfig.open` does."""
        return self._config.open()


@dataclasses.dataclass(eq=False)
class Resolved:
    """A configuration with its references resolved.

    - `config`: the configuration, with `latent` filled in.
    - `data`: its images, opened on first use.
    - `latents`: its tokenizer; None for a network trained on pixels.
    - `stored`: the manifest of its stored latents; None if it uses none.
    - `source`: the network providing the initial weights, if it is loaded already; see `take_source`.
    """

    config: Config
    data: Data
    latents: Latents | None = None
    stored: Manifest | None = None
    source: Pretrained | None = None

    def identified(self) -> "Resolved":
        """Returns the same with the fingerprint of the data filled in to the configuration (`DataConfig.content`).

        Raises `BadInput` if the data cannot be read.
        """
        data = dataclasses.replace(self.config.data, content=self.data.digest)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def take_source(self) -> Pretrained | None:
        """Returns `source` and releases it, so its weights do not occupy memory during training."""
        source, self.source = self.source, None
        return source


def resolve(
    config: Config, source: Pretrained | None = None, *, data: Data | None = None, recipe: Config | None = None
) -> Resolved:
    """Resolves the references in a configuration.

    **Arguments:**

    - `config`: the configuration; its `latent` is replaced by the latent description of its tokenizer, and its data by
        what is found in their folder (`DataConfig.located`).
    - `source`: the network providing the initial weights; its tokenizer is reused if the configuration names the same.
    - `data`: the data of the configuration, if they are located already, and described or opened.
    - `recipe`: the preset that the configuration was made from.

    **Raises:** `BadInput` naming `tokenizer` or `data.latents` if one of them cannot be read, or if they do not
    match each other or the data.
    """
    if data is None:
        config = dataclasses.replace(config, data=config.data.located(None if recipe is None else recipe.data))
        data = Data(config.data)
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
    """Copies the resolved `latent` of a configuration to a recipe with the same tokenizer and stored latents.

    The fingerprint of the data is copied as well: no flag sets it, so that it is not a difference from the recipe.
    """
    same = recipe.tokenizer == config.tokenizer and recipe.data.latents == config.data.latents
    data = dataclasses.replace(recipe.data, content=config.data.content)
    return dataclasses.replace(recipe, data=data, latent=config.latent if same else recipe.latent)
