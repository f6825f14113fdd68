"""The named sizes of the network, and its configuration."""

import dataclasses
import re
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.predictions import PredictionType
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.vit.autoencoder import AutoEncoder, Head
from umd_eqx.models.vit.blocks import BlockConfig
from umd_eqx.models.vit.conditioning import AbstractConditioning, AdaLNZero, SharedAdaLN, Token
from umd_eqx.models.vit.embedders import CondEmbedder, IntervalCondEmbedder
from umd_eqx.models.vit.layers import Linear, xavier_uniform, zeros
from umd_eqx.models.vit.stack import Remat, Stack


class Size(NamedTuple):
    """Width, depth and heads of a stack."""

    width: int
    depth: int
    heads: int


def _published(width: int, depth: int, heads: int) -> tuple[Size, Size]:
    # The decoder has the encoder's width and a third of its depth.
    return Size(width, depth, heads), Size(width, max(1, depth // 3), heads)


VARIANTS = {
    "mu": _published(64, 3, 2),  # for tests
    "nano": (Size(192, 4, 3), Size(64, 1, 2)),  # trains on a laptop in six minutes
    "Ti": _published(192, 12, 3),
    "S": _published(384, 12, 6),
    "B": _published(768, 12, 12),
    "L": _published(1024, 24, 16),
    "H": _published(1280, 32, 16),
    "XL": _published(1152, 28, 16),
}
"""The sizes of encoder and decoder by name. S, B and L are those of the paper (and of ViT), XL is that of DiT."""


MOST_STD = 100.0
"""The largest standard deviation of initial parameters."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(AbstractModelConfig):
    """The configuration of the ViT auto-encoder."""

    variant: str = "B/4"
    """Network size and patch size in pixels, as SIZE/PATCH. SIZE is one of mu, nano, Ti, S, B, L, H, XL."""
    conditioning: Literal["adaln", "shared-adaln", "token"] = "adaln"
    """Conditioning on time and label: AdaLN-zero per block, one AdaLN plus a small table per block, or a token."""
    class_tokens: int = 4
    """Number of learned class tokens in the encoder; their mean is the representation."""
    class_token_std: float = 0.02
    """Standard deviation of the initial class tokens. At 0, as published, they stay identical throughout training."""
    position_std: float | None = None
    """Standard deviation of the initial position embeddings. None: 1 / sqrt(patches), as published."""
    registers: int = 0
    """Number of register tokens in the encoder, whose outputs are discarded (Darcet et al. 2023)."""
    block: BlockConfig = dataclasses.field(default_factory=BlockConfig)
    labels: bool = False
    """Whether the network has a label table, for class-conditional generation."""
    prediction: PredictionType = "x0_eps"
    """Prediction type: clean image and noise (x0_eps, as published), clean image (x0), v, or MeanFlow's u."""
    scan: bool = True
    """Whether to scan over the layers, so that one block is compiled. False unrolls them and compiles more slowly."""
    remat: Remat = "dots"
    """What the backward pass recomputes: none, dots (all but products with weights) or full (as published)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the tokens. Parameters are always float32."""

    @property
    def title(self) -> str:
        """The name of the variant."""
        return self.variant

    @property
    def class_conditional(self) -> bool:
        """Whether the network is conditioned on labels (`labels`)."""
        return self.labels

    @property
    def precision(self) -> str:
        """The dtype of the tokens (`dtype`)."""
        return self.dtype

    def num_patches(self, size: int) -> int:
        """The number of patches in an image of `size` x `size` pixels."""
        return (size // self.sizes()[2]) ** 2

    def sizes(self) -> tuple[Size, Size, int]:
        """Returns the encoder size, decoder size and patch size of the variant.

        Raises `BadInput` if `variant` is not valid.
        """
        match = re.fullmatch(r"([A-Za-z]+)/([1-9][0-9]{0,3})", self.variant)
        if match is None or match[1] not in VARIANTS:
            raise BadInput(
                "model.variant",
                f"{self.variant!r} is not a variant",
                f"Write NAME/PATCH with NAME one of {', '.join(VARIANTS)}; for example B/4",
            )
        encoder, decoder = VARIANTS[match[1]]
        return encoder, decoder, int(match[2])

    def validate(self, size: int, field: str = "model.variant") -> None:
        """Raises `BadInput` if the configuration is invalid or does not fit images of `size` x `size` pixels."""
        *_, patch = self.sizes()
        if size % patch != 0:
            divisors = [p for p in range(1, size + 1) if size % p == 0]
            raise BadInput(
                field,
                f"a patch size of {patch} does not divide an image of {size} x {size} pixels",
                f"Choose a patch size from {', '.join(map(str, divisors))}, or another `data.size`",
            )
        if self.class_tokens < 1:
            raise BadInput("model.class_tokens", f"{self.class_tokens} is too few", "Use 1 or more (the paper has 4)")
        if self.registers < 0:
            raise BadInput("model.registers", f"{self.registers} is negative", "Use 0 or more")
        for stack in self.sizes()[:2]:
            if self.block.rotary and stack.width // stack.heads % 4:
                problem = f"rotary embeddings do not fit a head width of {stack.width // stack.heads}"
                raise BadInput("model.block.rotary", problem, "Choose a variant whose head width is divisible by 4")
        for name in ("class_token_std", "position_std"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadInput(f"model.{name}", f"{value} is negative", "Use 0 or more")
            if value is not None and not value <= MOST_STD:
                raise BadInput(f"model.{name}", f"{value} is too large", f"Use at most {MOST_STD:g}")

    def build(self, size: int, channels: int, num_classes: int, *, key: PRNGKeyArray) -> AutoEncoder:
        """Returns a freshly initialised network for images of `size` x `size` x `channels`.

        Initialised as in the reference: Xavier-uniform kernels in attention and MLP, LeCun-normal elsewhere, zero
        modulation, positions N(0, 1/sqrt(n)), mask embedding and head N(0, 0.02).
        """
        self.validate(size)
        encoder, decoder, patch = self.sizes()
        keys = jax.random.split(key, 12)
        num_patches = self.num_patches(size)
        classes = num_classes if self.labels else None
        normal = partial(jax.random.normal, dtype=jnp.float32)
        position_std = num_patches**-0.5 if self.position_std is None else self.position_std
        return AutoEncoder(
            embed=Linear.init(patch * patch * channels, encoder.width, key=keys[0]),
            positions=normal(keys[1], (num_patches, encoder.width)) * position_std,
            class_tokens=normal(keys[2], (self.class_tokens, encoder.width)) * self.class_token_std,
            registers=self._registers(encoder.width, jax.random.fold_in(key, 12)),
            condition=(IntervalCondEmbedder if self.prediction == "u" else CondEmbedder).init(
                encoder.width, classes, key=keys[3]
            ),
            encoder=self._stack(encoder, encoder.width, keys[4], keys[5]),
            bridge=None
            if encoder.width == decoder.width
            else Linear.init(encoder.width, decoder.width, key=keys[6], kernel_init=xavier_uniform),
            mask_token=normal(keys[7], (decoder.width,)) * 0.02,
            decoder_positions=normal(keys[8], (num_patches, decoder.width)) * position_std,
            decoder=self._stack(decoder, encoder.width, keys[9], keys[10]),
            head=self._head(encoder.width, decoder.width, patch, channels, keys[11]),
            image_shape=(size, size, channels),
            patch=patch,
            num_patches=num_patches,
            num_classes=classes,
            dtype=self.dtype,
            prediction=self.prediction,
        )

    def _registers(self, width: int, key: PRNGKeyArray) -> Float[Array, "registers d"] | None:
        return jax.random.normal(key, (self.registers, width), jnp.float32) * 0.02 if self.registers else None

    def _conditioning(self, condition: int, size: Size, key: PRNGKeyArray) -> AbstractConditioning:
        match self.conditioning:
            case "adaln":
                return AdaLNZero.init(condition, size.width, size.depth, key=key)
            case "shared-adaln":
                return SharedAdaLN.init(condition, size.width, size.depth, key=key)
            case "token":
                return Token.init(condition, size.width, key=key)

    def _stack(self, size: Size, condition: int, key: PRNGKeyArray, conditioning_key: PRNGKeyArray) -> Stack:
        conditioning = self._conditioning(condition, size, conditioning_key)
        return Stack.init(*size, conditioning, self.block, scan=self.scan, remat=self.remat, key=key)

    def _head(self, condition: int, width: int, patch: int, channels: int, key: PRNGKeyArray) -> Head:
        kernel_key, modulation_key = jax.random.split(key)
        predicted = (2 if self.prediction == "x0_eps" else 1) * channels
        kernel = jax.random.normal(kernel_key, (width, patch * patch * predicted), jnp.float32) * 0.02
        bias = jnp.zeros(predicted, jnp.float32)
        if self.conditioning == "token":
            return Head(None, kernel, bias)
        return Head(Linear.init(condition, 2 * width, key=modulation_key, kernel_init=zeros), kernel, bias)
