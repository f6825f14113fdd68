"""Reading and writing the Stable Diffusion VAE in the format of diffusers' AutoencoderKL: safetensors and JSON."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.json_files import read_json
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.models.tokenizers.vae import AutoencoderKL, VAEConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""The names of the two files of a diffusers model."""

MAX_WIDTH = 2**14
"""The largest width that is accepted in a configuration."""
MAX_LAYERS = 64
"""The largest accepted number of layers per resolution. Shapes are computed first, which is slow for thousands."""
SD_SCALE = 0.18215
"""The default `scaling_factor` of diffusers, on which the published Stable Diffusion 1 files rely."""

FIXED_OPTIONS = {
    "act_fn": "silu",
    "norm_type": "group",
    "block_out_channels_multiplier": None,
    "latents_mean": None,
    "latents_std": None,
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
}
"""Options of diffusers of which only one value is supported."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names of the attention layers before diffusers 0.18, which many files still use."""


def is_diffusers(path: Path) -> bool:
    """Whether a folder, or a safetensors file with a configuration beside it, is in the format of diffusers."""
    folder = _folder(path)
    try:
        return "_class_name" in read_json(folder / CONFIG)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_diffusers(path: str | os.PathLike[str], field: str = "tokenizer") -> AutoencoderKL:
    """Reads a trained auto-encoder. Half precision is converted to float32.

    **Arguments:**

    - `path`: the folder with `config.json` and `diffusion_pytorch_model.safetensors`, a folder whose subfolder `vae`
        has them, or another safetensors file with its `config.json` beside it.
    - `field`: the field that named it.

    **Raises:** `BadInput` for a configuration of another network, and for the first array that is missing, unexpected,
    of another shape or not finite.
    """
    path = Path(path)
    folder = _folder(path)
    config = _read_config(folder / CONFIG, field)
    file = path if path.is_file() else folder / WEIGHTS
    tensors, _ = read_tensors(file, field)
    like = jax.eval_shape(lambda key: AutoencoderKL.init(config, key=key), jax.random.key(0))
    renamed = _current_names(tensors)
    if len(renamed) < len(tensors):
        problem = f"{file} holds the attention layers under both their old and their new names"
        raise BadInput(field, problem, "Download the file again")
    tensors = renamed
    wanted = {_diffusers_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    hint = f"Check that {CONFIG} belongs to this file"
    for name in sorted(set(tensors) - set(wanted)):
        raise BadInput(field, f"{_printable(name)} in {file} is not part of the network", hint)

    def put(path: tuple[jax.tree_util.KeyEntry, ...], leaf: Any) -> jax.Array:
        name = _diffusers_name(path)
        if name not in tensors:
            raise BadInput(field, f"{file} lacks {name}", hint)
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):  # a quantised file
            problem = f"{name} in {file} has dtype {tensors[name].dtype}"
            raise BadInput(field, problem, "Download the file in float16 or float32")
        with np.errstate(over="ignore"):  # overflow to infinity is reported below
            tensor = _from_diffusers_layout(tensors[name].astype(np.float32), leaf.ndim)
        if tensor.shape != leaf.shape:
            problem = f"{name} in {file} has shape {tensors[name].shape}, which is not that of the network"
            raise BadInput(field, problem, hint)
        if not np.isfinite(tensor).all():
            raise BadInput(field, f"{name} in {file} holds values that are not finite", "Download the file again")
        return jnp.asarray(tensor)

    return jax.tree_util.tree_map_with_path(put, like)


def write_diffusers(tokenizer: AutoencoderKL, config: VAEConfig, folder: str | os.PathLike[str]) -> None:
    """Writes both files into a folder, for diffusers' `AutoencoderKL.from_pretrained`.

    `config` is the configuration from which the tokenizer was built; shift and scale are taken from the tokenizer.
    Raises `OSError` if a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(tokenizer)
    tensors = {_diffusers_name(path): _to_diffusers_layout(np.asarray(leaf, np.float32)) for path, leaf in leaves}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    content = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.widths),
        "in_channels": config.channels,
        "out_channels": config.channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "mid_block_add_attention": config.attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
        "scaling_factor": tokenizer.scale,
        "shift_factor": tokenizer.shift or None,
    }
    save_json(folder / CONFIG, content)


def _folder(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    return folder / "vae" if not (folder / CONFIG).exists() and (folder / "vae" / CONFIG).exists() else folder


def _read_config(path: Path, field: str) -> VAEConfig:
    try:
        content = read_json(path)
        if content.get("_class_name") != "AutoencoderKL":
            problem = f"{path} describes a {_printable(content.get('_class_name'))!r}, not an AutoencoderKL"
            raise BadInput(field, problem, "Give the folder of the VAE")
        for name, only in FIXED_OPTIONS.items():
            found = content.get(name, only)
            if any(value != only for value in (found if isinstance(found, list) else [found])):
                problem = f"{path} has {name} = {_printable(found)}, and only {only} is supported"
                raise BadInput(field, problem, "Use another VAE")
        if content.get("in_channels", 3) != content.get("out_channels", 3):
            raise BadInput(field, f"{path} has different numbers of input and output channels", "Use another VAE")
        config = VAEConfig(
            channels=content.get("in_channels", 3),
            latent_channels=content.get("latent_channels", 4),
            widths=tuple(content.get("block_out_channels", (64,))),
            layers=content.get("layers_per_block", 1),
            groups=content.get("norm_num_groups", 32),
            attention=content.get("mid_block_add_attention", True),
            quant_conv=content.get("use_quant_conv", True),
            post_quant_conv=content.get("use_post_quant_conv", True),
            shift=_number(content.get("shift_factor"), 0.0),
            scale=_number(content.get("scaling_factor", SD_SCALE), 1.0),
        )
        _require_sane(config)
        if any(width % config.groups for width in config.widths):
            problem = f"{path} has {config.groups} groups, which do not divide the widths {config.widths}"
            raise BadInput(field, problem, "Download the file again")
        return config
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror})", "Download the file again") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(field, f"{path} does not describe a network", "Download the file again") from error


def _number(value: Any, null: float) -> float:
    return null if value is None else float(value)


def _printable(value: Any) -> str:
    # Text from a file, for a message: short, on one line and without control characters.
    return "".join(c if c.isprintable() else " " for c in str(value)[:80])


def _require_sane(config: VAEConfig) -> None:
    """Raises `TypeError` or `ValueError` for values that diffusers does not write."""
    counts = (config.channels, config.latent_channels, config.layers, config.groups, *config.widths)
    if any(type(count) is not int or not 0 < count <= MAX_WIDTH for count in counts) or len(config.widths) > 10:
        raise TypeError("a count")
    if config.layers > MAX_LAYERS:
        raise ValueError("layers")
    if not (math.isfinite(config.shift) and math.isfinite(config.scale) and config.scale > 0):
        raise ValueError("shift or scale")
    if any(type(value) is not bool for value in (config.attention, config.quant_conv, config.post_quant_conv)):
        raise TypeError("attention or convolutions")


def _diffusers_name(path: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    """Returns the name of an array in diffusers, given its path in our tree."""
    name = jax.tree_util.keystr(path)[1:]
    side, up = ("up", "up_blocks") if name.startswith("decoder") else ("down", "down_blocks")
    for ours, theirs in (
        (r"\.levels\[(\d+)\]\.blocks\[(\d+)\]", rf".{up}.\1.resnets.\2"),
        (r"\.levels\[(\d+)\]\.resample", rf".{up}.\1.{side}samplers.0.conv"),
        (r"\.middle\.first", ".mid_block.resnets.0"),
        (r"\.middle\.second", ".mid_block.resnets.1"),
        (r"\.middle\.attention\.norm", ".mid_block.attentions.0.group_norm"),
        (r"\.middle\.attention\.out", ".mid_block.attentions.0.to_out.0"),
        (r"\.middle\.attention\.(\w)\w+", r".mid_block.attentions.0.to_\1"),
        (r"coder\.first", "coder.conv_in"),
        (r"coder\.norm", "coder.conv_norm_out"),
        (r"coder\.last", "coder.conv_out"),
        (r"\.shortcut", ".conv_shortcut"),
        (r"\.(kernel|scale)$", ".weight"),
    ):
        name = re.sub(ours, theirs, name)
    return name


def _current_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {f".attentions.0.{old}.": f".attentions.0.{new}." for new, old in OLD_ATTENTION.items()}

    def renamed(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _from_diffusers_layout(tensor: np.ndarray, ndim: int) -> np.ndarray:
    if tensor.ndim == 4 and ndim == 2 and tensor.shape[2:] == (1, 1):  # a 1 x 1 convolution instead of a linear layer
        tensor = tensor[:, :, 0, 0]
    if tensor.ndim != ndim:
        return tensor  # the shape mismatch is reported by the caller
    return tensor.transpose(2, 3, 1, 0) if ndim == 4 else tensor.T


def _to_diffusers_layout(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
