"""The configurations of trainable tokenizers."""

import dataclasses
from pathlib import Path

from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.finished import FinishedRun
from umd_eqx.models.tokenizers.files import finish_tokenizer
from umd_eqx.models.tokenizers.fsq import FSQ
from umd_eqx.models.tokenizers.vae import AutoencoderKL, VAEConfig

SMALL = (16, 32, 64)
"""Widths for the bundled images: two downsamplings, from 28 pixels to 7."""


@dataclasses.dataclass(frozen=True)
class _TokenizerConfig(AbstractModelConfig):
    """Base class for tokenizer configurations: no labels, no masks, and a file written when training is finished."""

    @property
    def class_conditional(self) -> bool:
        """Always False: tokenizers are not conditioned on labels."""
        return False

    def finish(self, run: FinishedRun) -> Path | None:
        """Writes the tokenizer to the run directory; see `finish_tokenizer`."""
        return finish_tokenizer(run)


@dataclasses.dataclass(frozen=True)
class KLTokenizer(_TokenizerConfig):
    """A variational auto-encoder with Gaussian latents."""

    latent_channels: int = 4
    """Number of channels of the latent."""
    widths: tuple[int, ...] = SMALL
    """Channels at each resolution; each but the last is followed by downsampling by 2."""
    layers: int = 1
    """Number of residual blocks per resolution in the encoder; the decoder has one more."""
    groups: int = 8
    """Number of groups in each group normalisation."""

    @property
    def title(self) -> str:
        """KL and the number of latent channels."""
        return f"KL-{self.latent_channels}"

    def validate(self, size: int, field: str = "model.widths") -> None:
        """Raises `BadInput` for invalid sizes, and for images that cannot be downsampled that many times."""
        self._sizes(1).validate()
        _require_halvings(size, self._sizes(1).factor, field)

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> AutoencoderKL:
        """Returns a freshly initialised tokenizer, which depends on neither `size` nor `num_classes`."""
        return AutoencoderKL.init(self._sizes(channels), key=key)

    def _sizes(self, channels: int) -> VAEConfig:
        # A placeholder for the scale, which `finish_tokenizer` measures.
        return VAEConfig(channels, self.latent_channels, self.widths, self.layers, self.groups, scale=1.0)


@dataclasses.dataclass(frozen=True)
class FSQTokenizer(_TokenizerConfig):
    """An auto-encoder with latents quantised to a grid of codes (FSQ)."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Quantisation levels per latent channel; their product is the codebook size (arXiv 2309.15505, table 1: 1,000)."""
    widths: tuple[int, ...] = (16, 32, 32)
    """Channels at each resolution; each but the last is followed by downsampling by 2."""
    layers: int = 1
    """Number of residual blocks per resolution in the encoder; the decoder has one more."""
    groups: int = 8
    """Number of groups in each group normalisation."""

    @property
    def title(self) -> str:
        """FSQ and its levels."""
        return f"FSQ-{'x'.join(map(str, self.levels))}"

    def validate(self, size: int, field: str = "model.widths") -> None:
        """Raises `BadInput` for invalid levels or sizes, and for images that cannot be downsampled that many times."""
        if not self.levels or any(level < 2 for level in self.levels):
            problem = f"{self.levels} are not valid levels"
            raise BadInput("model.levels", problem, "Give 2 or more for each latent channel")
        self._sizes(1).validate()
        _require_halvings(size, self._sizes(1).factor, field)

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> FSQ:
        """Returns a freshly initialised tokenizer, which depends on neither `size` nor `num_classes`."""
        return FSQ.init(self._sizes(channels), self.levels, key=key)

    def _sizes(self, channels: int) -> VAEConfig:
        return VAEConfig(channels, len(self.levels), self.widths, self.layers, self.groups)


def _require_halvings(size: int, factor: int, field: str) -> None:
    if size % factor:
        problem = f"images of {size} x {size} cannot be downsampled by a factor of {factor}"
        raise BadInput(field, problem, f"Use fewer widths, or a `data.size` divisible by {factor}")
