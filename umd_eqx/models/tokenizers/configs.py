"""How the tokenizers that can be trained are built: what a recipe says of them."""

import dataclasses
from pathlib import Path

from jaxtyping import PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.models.finished import FinishedRun
from umd_eqx.models.tokenizers.files import finish_tokenizer
from umd_eqx.models.tokenizers.fsq import FSQ
from umd_eqx.models.tokenizers.vae import AutoencoderKL, VAEConfig
from umd_eqx.models.vit.variants import AbstractModelConfig

SMALL = (16, 32, 64)
"""Widths for the shipped images: two halvings, 28 pixels to 7."""


@dataclasses.dataclass(frozen=True)
class _TokenizerConfig(AbstractModelConfig):
    """What both kinds have in common: no labels, no masks, and a file when the training is over."""

    @property
    def knows_labels(self) -> bool:
        """No."""
        return False

    def num_patches(self, size: int) -> int:
        """1: nothing is masked."""
        return 1

    def finish(self, run: FinishedRun) -> Path | None:
        """Writes the tokenizer into the directory of the run: see `finish_tokenizer`."""
        return finish_tokenizer(run)


@dataclasses.dataclass(frozen=True)
class KLTokenizer(_TokenizerConfig):
    """An auto-encoder whose latents are Gaussian."""

    latent_channels: int = 4
    """Numbers at each place of the latent."""
    widths: tuple[int, ...] = SMALL
    """Channels at each size; each but the last is followed by a halving."""
    layers: int = 1
    """Blocks at each size of the encoder; the decoder has one more."""
    groups: int = 8
    """Of the normalisations."""

    @property
    def title(self) -> str:
        """KL, and the numbers of a latent's place."""
        return f"KL-{self.latent_channels}"

    def validate(self, size: int, field: str = "--model.widths") -> None:
        """Raises `BadInput` for sizes that cannot work, and for images that cannot be halved so often."""
        self._sizes(1).validate()
        _require_halvings(size, self._sizes(1).factor, field)

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> AutoencoderKL:
        """Fresh. Neither `size` nor `num_classes` matters."""
        return AutoencoderKL.init(self._sizes(channels), key=key)

    def _sizes(self, channels: int) -> VAEConfig:
        # In the place of its scale, what `finish_tokenizer` measures.
        return VAEConfig(channels, self.latent_channels, self.widths, self.layers, self.groups, scale=1.0)


@dataclasses.dataclass(frozen=True)
class FSQTokenizer(_TokenizerConfig):
    """An auto-encoder whose latents are codes of a grid."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Values of each number of a code; their product is the number of codes (arXiv 2309.15505, table 1: 1,000)."""
    widths: tuple[int, ...] = (16, 32, 32)
    """Channels at each size; each but the last is followed by a halving."""
    layers: int = 1
    """Blocks at each size of the encoder; the decoder has one more."""
    groups: int = 8
    """Of the normalisations."""

    @property
    def title(self) -> str:
        """FSQ, and the levels."""
        return f"FSQ-{'x'.join(map(str, self.levels))}"

    def validate(self, size: int, field: str = "--model.widths") -> None:
        """Raises `BadInput` for sizes that cannot work, and for images that cannot be halved so often."""
        if not self.levels or any(level < 2 for level in self.levels):
            raise BadInput("--model.levels", f"{self.levels} are no levels", "Give 2 or more for each number of a code")
        self._sizes(1).validate()
        _require_halvings(size, self._sizes(1).factor, field)

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> FSQ:
        """Fresh. Neither `size` nor `num_classes` matters."""
        return FSQ.init(self._sizes(channels), self.levels, key=key)

    def _sizes(self, channels: int) -> VAEConfig:
        return VAEConfig(channels, len(self.levels), self.widths, self.layers, self.groups)


def _require_halvings(size: int, factor: int, field: str) -> None:
    if size % factor:
        problem = f"images of {size} x {size} cannot be halved to one {factor}th"
        raise BadInput(field, problem, f"Use fewer widths, or a --data.size that {factor} divides")
