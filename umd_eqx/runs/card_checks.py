"""Validation of the cards of networks and tokenizers: a card may come from anywhere, and is not trusted."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.predictions import PredictionType
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.source_configs import AbstractSource
from umd_eqx.models import ModelConfig
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.vit.blocks import BlockConfig
from umd_eqx.models.vit.stack import Remat
from umd_eqx.recipes.config import DataConfig

Weights = Literal["raw", "ema"]

MAX_SIDE = 4096
"""The largest image side that the card of a network may declare."""

MAX_COUNT = 2**16
"""The largest count that the card of a tokenizer may declare: of channels, groups or levels."""

MAX_LAYERS, MAX_RESOLUTIONS = 16, 16
"""Depth limits for the card of a tokenizer: building a deeper one would take minutes, even as shapes."""


def require_sane_network(
    parts: Mapping[str, Any], preset: Any, step: Any, kind: Any, types: Collection[type] = ()
) -> None:
    """Raises `TypeError` or `ValueError` for values that an export of a network cannot contain.

    `parts` holds its loaded model, path, data and spec. `types` are user-defined classes; the fields of a network among
    them are checked only by its own `validate`.
    """
    for name, cls in {"path": AbstractPath, "data": DataConfig, "spec": DataSpec}.items():
        if not isinstance(parts[name], cls):
            raise TypeError(name)
    model, data, spec = parts["model"], parts["data"], parts["spec"]
    if not isinstance(data.source, AbstractSource):
        raise TypeError("source")
    if not (data.content is None or isinstance(data.content, str)):
        raise TypeError("content")
    _require_counts(data.size, data.eval_batch_size, spec.channels, spec.num_classes, step)
    if data.size > MAX_SIDE or kind not in get_args(Weights):
        raise ValueError("size or weights")
    if not (isinstance(preset, str) and preset.isprintable()):
        raise TypeError("preset")
    if isinstance(model, ModelConfig):
        _require_sane_config(model)
    elif not (isinstance(model, AbstractModelConfig) and type(model) in types):
        raise TypeError("model")


def _require_counts(*counts: Any) -> None:
    if any(type(count) is not int or not 0 <= count < 2**31 for count in counts):
        raise TypeError("a count")


def _require_sane_config(model: ModelConfig) -> None:
    _require_counts(model.class_tokens, model.registers)
    if not isinstance(model.variant, str):
        raise TypeError("variant")
    if model.prediction not in get_args(PredictionType):
        raise ValueError("prediction")
    if model.dtype not in ("float32", "bfloat16") or model.remat not in get_args(Remat):
        raise ValueError("dtype or remat")
    if not isinstance(model.block, BlockConfig) or model.block.mlp not in ("gelu", "swiglu"):
        raise ValueError("block")
    switches = (model.labels, model.scan, model.block.rotary, model.block.qk_norm)
    if any(type(switch) is not bool for switch in switches):
        raise TypeError("a switch")


def require_sane_latents(tokenizer: Any, latent: Any) -> None:
    """Raises `TypeError` or `ValueError` for invalid latent entries in the card of a network."""
    if (tokenizer is None) != (latent is None):
        raise TypeError("tokenizer or latent")
    if latent is None:
        return
    if not (isinstance(tokenizer, str) and isinstance(latent, LatentSpec) and isinstance(latent.digest, str)):
        raise TypeError("tokenizer or latent")
    if any(type(count) is not int or not 0 < count < 2**10 for count in (latent.factor, latent.channels)):
        raise TypeError("factor or channels")


def require_sane_tokenizer(config: Any, channels: Any, shift: Any, scale: Any) -> None:
    """Raises `TypeError` or `ValueError` for values that an export of a tokenizer cannot contain.

    Every field of `config` must be a count or a short tuple of counts; `shift` and `scale` must be finite, and `scale`
    positive. `AbstractModelConfig.validate` checks whether the fields are consistent.
    """
    if not isinstance(config, KLTokenizer | FSQTokenizer):
        raise TypeError("model")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        some = value if isinstance(value, tuple) else (value,)
        most = MAX_LAYERS if field.name == "layers" else MAX_COUNT
        if len(some) > MAX_RESOLUTIONS or any(type(count) is not int or not 0 < count <= most for count in some):
            raise ValueError(field.name)
    if type(channels) is not int or not 0 < channels < 2**10:
        raise TypeError("channels")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (shift, scale)) or scale <= 0:
        raise ValueError("shift or scale")
