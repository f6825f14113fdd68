"""Conversion of configurations to plain data and back. Types are tags from a closed list: a file cannot import code."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import Clean, CosinePath, CosineTable, LinearTable, RectifiedFlow, SmoothTable
from umd_eqx.core.sharding import ShardingConfig
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.source_configs import TFDS, ImageFolder, Images
from umd_eqx.eval import (
    Accuracy,
    Denoising,
    FewShot,
    Generation,
    ProbeAccuracy,
    Reconstruction,
    TokenizerQuality,
)
from umd_eqx.models import ModelConfig
from umd_eqx.models.extractors.configs import FashionClassifierConfig
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.vit.blocks import BlockConfig
from umd_eqx.models.vit.classifiers import ViTClassifierConfig
from umd_eqx.models.vit.probes import LinearProbeConfig
from umd_eqx.objectives import (
    Classification,
    LinearProbing,
    MaskedDenoising,
    MeanFlow,
    PatchNoise,
    Term,
    Tokenizing,
    Unified,
)
from umd_eqx.recipes.config import CheckpointConfig, Config, DataConfig, LogConfig, Start
from umd_eqx.recipes.upgrade import upgraded
from umd_eqx.sampling import (
    DDIM,
    Adaptive,
    DPMSolverPP,
    EDMGrid,
    Euler,
    Heun,
    LogSNRGrid,
    MeanFlowSampler,
    ReferenceGrid,
    ReverseSDE,
    ShiftedGrid,
    UniformGrid,
)
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import LARS, AdamW, Muon
from umd_eqx.training.profile import ProfileConfig
from umd_eqx.training.trainable import AllExcept, Only

TYPES: tuple[type, ...] = (
    *(
        Config,
        ModelConfig,
        BlockConfig,
        DataConfig,
        TFDS,
        ImageFolder,
        Images,
        DataSpec,
        LatentSpec,
        EmaConfig,
        CheckpointConfig,
        LogConfig,
        ShardingConfig,
        ProfileConfig,
        Start,
    ),
    *(KLTokenizer, FSQTokenizer, FashionClassifierConfig, LinearProbeConfig, ViTClassifierConfig),
    *(Term, MaskedDenoising, Unified, PatchNoise, MeanFlow, Tokenizing, Classification, LinearProbing),
    *(AllExcept, Only),
    *(Clean, CosineTable, LinearTable, CosinePath, RectifiedFlow, SmoothTable),
    *(FewShot, Reconstruction, Denoising, Generation, TokenizerQuality, Accuracy, ProbeAccuracy),
    *(AdamW, Muon, LARS),
    *(DDIM, DPMSolverPP, Euler, Heun, Adaptive, ReverseSDE, MeanFlowSampler),
    *(ReferenceGrid, UniformGrid, EDMGrid, LogSNRGrid, ShiftedGrid),
)
"""The types that a dump may contain. A user's own types are passed to `load` in addition."""

NON_IDENTITY_FIELDS = (
    *("log", "checkpoint", "eval", "max_skipped", "sharding", "profile"),
    *("start.source", "tokenizer", "data.latents"),
    *("data.source.dir", "data.eval_batch_size", "data.workers", "data.worker_kind"),
    *("data.max_broken", "data.expected"),
)
"""Fields that do not affect the trained weights: they may differ when a run is resumed."""


def dump(value: Any) -> Any:
    """Converts a value to numbers, strings, lists and dictionaries.

    A dataclass or named tuple becomes a dictionary with the name of its type under "type".
    """
    fields = getattr(value, "_fields", None)  # a named tuple
    if fields is not None:
        return {"type": type(value).__name__} | {name: dump(getattr(value, name)) for name in fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    if isinstance(value, Mapping):
        return {str(name): dump(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration cannot hold {value!r}")


def load(data: Any, types: Iterable[type] = ()) -> Any:
    """Converts a dump, also one of an older version, back to a value; lists become tuples.

    `types` are a user's own types, in addition to `TYPES`. Raises `BadInput` for a type that is in neither, and for a
    field that its type does not have.
    """
    known = {cls.__name__: cls for cls in (*TYPES, *types)}

    def build(data: Any) -> Any:
        if isinstance(data, list):
            return tuple(build(item) for item in data)
        if not isinstance(data, dict):
            return data
        if "type" not in data:
            return {name: build(item) for name, item in data.items()}
        name = data["type"]
        if not isinstance(name, str) or name not in known:
            hint = "Run the command from the file that defines it (python my_file.py sample ...), or pass types=[...]"
            raise BadInput("config.json", f"{name!r} is not a known type", hint)
        try:
            return known[name](**{key: build(item) for key, item in data.items() if key != "type"})
        except TypeError as error:
            problem = " ".join(str(error).split())[:200]  # jaxtyping's messages have several lines
            raise BadInput("config.json", problem, "It was written by another version of this program") from error

    return build(upgraded(data))


def completed(data: Any) -> Any:
    """Converts a dump of any version to the current format, with missing fields at their defaults.

    A user's own types are left unchanged.
    """
    known = {cls.__name__: cls for cls in TYPES if dataclasses.is_dataclass(cls)}

    def complete(data: Any) -> Any:
        if isinstance(data, list):
            return [complete(item) for item in data]
        if not isinstance(data, dict):
            return data
        given = {name: complete(item) for name, item in data.items()}
        if data.get("type") not in known:
            return given
        fields = dataclasses.fields(known[data["type"]])
        missing = {field.name: dump(default_of(field)) for field in fields if field.name not in given}
        return given | missing

    return complete(upgraded(data))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field of a dataclass, or None if it has no default."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def flatten(data: Any, prefix: str = "", *, plain_lists: bool = False) -> dict[str, Any]:
    """Flattens a dump to its leaves by dotted name: `{"optim.lr": 0.001, ...}`.

    With `plain_lists`, a list of numbers and strings is a leaf. Otherwise its items are, named by their indices.
    """
    if plain_lists and isinstance(data, list) and not any(isinstance(item, dict | list) for item in data):
        return {prefix: data}
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None:
        return {prefix: data}
    flat = {}
    for name, item in items:
        flat |= flatten(item, f"{prefix}.{name}" if prefix else str(name), plain_lists=plain_lists)
    return flat


def run_identity(config: Config) -> dict[str, Any]:
    """Returns the fields that determine the trained weights, by dotted name.

    Two configurations with the same identity train the same weights.
    """
    return identity_fields(flatten(dump(config)))


def identity_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the fields in `NON_IDENTITY_FIELDS` from a flat dump."""
    return {
        name: v
        for name, v in flat.items()
        if not any(f"{name}.".startswith(f"{skip}.") for skip in NON_IDENTITY_FIELDS)
    }


def as_flag(name: str) -> str:
    """Returns the flag, without its dashes, that sets a leaf of a configuration: `data.name` for `data.source.name`.

    A type is chosen by the flag of its parent: `data.source` for `data.source.type`, `optim` for `optim.type`.
    """
    if name.endswith(".type"):
        return name.removesuffix(".type")
    renamed = {"profile.begin": "profile.from", "profile.end": "profile.to"}  # `from` is not a name in Python
    return renamed.get(name, name.replace("data.source.", "data.", 1))


def flags_of(recipe: Config, config: Config) -> tuple[str, ...] | None:
    """Returns the flags that turn a recipe into a configuration that trains the same weights.

    None if a type differs, because its name on a command line is not known here.
    """
    flags: dict[str, list[str]] = {}
    for name, (_, value) in differences(run_identity(recipe), run_identity(config)).items():
        if name.endswith(".type"):
            return None
        names = [part for part in as_flag(name).replace("_", "-").split(".") if not part.isdecimal()]  # no indices
        if isinstance(value, bool):
            flags[f"--{'.'.join([*names[:-1], names[-1] if value else f'no-{names[-1]}'])}"] = []
        else:
            flags.setdefault(f"--{'.'.join(names)}", []).append(str(value))
    return tuple(word for flag, values in flags.items() for word in (flag, *values))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the names whose values differ between two flat dumps, with both values (None for a missing one)."""
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
