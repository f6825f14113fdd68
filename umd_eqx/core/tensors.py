"""Named arrays in safetensors files, a format that holds numbers and text but no executable content."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import write_atomically
from umd_eqx.core.hashes import sha256_of

Tensors = Mapping[str, np.ndarray]

DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "C64": np.complex64,
}
"""The supported dtypes by their names in a safetensors file."""


class TensorFile(NamedTuple):
    """The content of a safetensors file: its arrays by name, the metadata of its header, and its SHA-256."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    sha256: str


def read_tensors(path: str | os.PathLike[str], field: str = "weights") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file by name, and the metadata of its header.

    Arguments and exceptions are those of `read_tensor_file`, which also returns the hash of the file.
    """
    return read_tensor_file(path, field)[:2]


def read_tensor_file(path: str | os.PathLike[str], field: str = "weights") -> TensorFile:
    """Reads a safetensors file in one pass.

    **Arguments:**

    - `path`: a local file.
    - `field`: the field that named it.

    **Raises:** `BadInput` for a file that is missing or unreadable, is not a safetensors file (a pickle, for example),
    has a header that does not match its length, or holds arrays of an unsupported dtype (bfloat16 is supported).
    Nothing in the file is executed, and at most a small multiple of its size is allocated.
    """
    hint = "Give a .safetensors file"
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
        raise BadInput(field, f"{path} is not a regular file", hint)
    try:
        data = Path(path).read_bytes()
        tensors = {
            name: np.frombuffer(found["data"], DTYPES[found["dtype"]]).reshape(found["shape"])
            for name, found in safetensors.deserialize(data)
        }
        # `deserialize` has validated the header but does not return its metadata.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return TensorFile(tensors, dict(header.get("__metadata__") or {}), sha256_of(data))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(field, f"there is no file {path}", hint) from error
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror or error})", hint) from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        # The message may quote the file: keep it on one line and without control characters.
        words = "".join(c if c.isprintable() else " " for c in str(error))
        problem = f"{path} is not a readable safetensors file ({' '.join(words.split())[:160]})"
        raise BadInput(field, problem, f"{hint}; nothing in this file was executed") from error


def write_tensors(path: str | os.PathLike[str], tensors: Tensors, texts: Mapping[str, str] | None = None) -> str:
    """Atomically writes a safetensors file of arrays by name, with `texts` in its header; returns its SHA-256.

    Raises `OSError` if the file cannot be written.
    """
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    data = safetensors.numpy.save(contiguous, dict(texts) if texts else None)
    write_atomically(path, data)
    return sha256_of(data)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a PyTree, or their shapes, by their names in a file, such as `encoder.norm.scale`.

    Leaves that are not arrays, such as the activation of an `equinox.nn.MLP`, are left out.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path)[1:]: leaf for path, leaf in leaves if _is_array(leaf)}


def named_settings(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns everything but the arrays of a PyTree of modules, by dotted name: module types and static fields."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        inner = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        found = {f"{prefix}type": type(tree).__name__}
    elif isinstance(tree, Mapping | list | tuple):
        inner = dict(tree) if isinstance(tree, Mapping) else dict(enumerate(tree))
        found = {f"{prefix}length": len(inner)}
    else:
        return {} if isinstance(tree, np.ndarray | jax.Array | jax.ShapeDtypeStruct) else {prefix[:-1]: tree}
    for name, value in inner.items():
        found |= named_settings(value, f"{prefix}{name}.")
    return found


def fill(like: Any, tensors: Tensors, path: str | os.PathLike[str], field: str, hint: str) -> Any:
    """Returns `like`, a PyTree of shapes, with the arrays of a file as its leaves, each in the dtype of its leaf.

    Leaves of `like` that are not shapes are kept.

    Raises `BadInput`, naming `field` and `hint`, for the first array of `path` that is missing, unexpected, of another
    shape or not finite.
    """
    leaves = named_leaves(like)
    for name in sorted(set(tensors) | set(leaves)):
        what = None
        if name not in tensors:
            what = f"lacks {name}"
        elif name not in leaves:
            what = f"has an unexpected array {name}"
        elif tensors[name].shape != leaves[name].shape:
            what = f"has {name} of shape {tensors[name].shape} instead of {leaves[name].shape}"
        elif not np.isfinite(tensors[name]).all():
            what = f"holds values that are not finite in {name}"
        if what:
            raise BadInput(field, f"{path} {what}", hint)
    filled = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in leaves.items()]
    places, rest = eqx.partition(like, _is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(places), filled), rest)


def _is_array(leaf: Any) -> bool:
    # Also true for shapes and tracers.
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
