"""Arrays by name in a safetensors file: a format that holds numbers and text and nothing that could be executed."""

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

KINDS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "C64": np.complex64,
}
"""What a safetensors file calls the kinds of numbers that are read."""


class TensorFile(NamedTuple):
    """A safetensors file that was read once: its arrays by name, the texts of its header, its SHA-256."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    sha256: str


def read_tensors(
    path: str | os.PathLike[str], field: str = "--weights"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and the texts of its header.

    **Arguments:** as for `read_tensor_file`, which also gives the file's hash and raises the same.
    """
    return read_tensor_file(path, field)[:2]


def read_tensor_file(path: str | os.PathLike[str], field: str = "--weights") -> TensorFile:
    """A safetensors file, opened and read once.

    **Arguments:**

    - `path`: of a local file.
    - `field`: the flag that named it.

    **Raises:** `BadInput` for a file that is missing, cannot be read, is no safetensors file (a pickle, for example),
    whose header does not fit its length, or that holds numbers of a kind unknown to numpy (bfloat16 is known). Nothing
    of the file is executed, and no more is allocated than a small multiple of its size.
    """
    hint = "Give a .safetensors file"
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise BadInput(field, f"{path} is no file", hint)
    try:
        data = Path(path).read_bytes()
        tensors = {
            name: np.frombuffer(found["data"], KINDS[found["dtype"]]).reshape(found["shape"])
            for name, found in safetensors.deserialize(data)
        }
        # `deserialize` has checked the header and leaves out its texts.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return TensorFile(tensors, dict(header.get("__metadata__") or {}), sha256_of(data))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(field, f"there is no file {path}", hint) from error
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror or error})", hint) from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        # The words may be the file's own: on one line, and nothing that a terminal would obey.
        words = "".join(c if c.isprintable() else " " for c in str(error))
        problem = f"{path} is no safetensors file that can be read ({' '.join(words.split())[:160]})"
        raise BadInput(field, problem, f"{hint}; nothing in this one was executed") from error


def write_tensors(path: str | os.PathLike[str], tensors: Tensors, texts: Mapping[str, str] | None = None) -> str:
    """Writes arrays by name, and texts into the header, as one safetensors file, in one piece; returns its SHA-256.

    Raises `OSError` if the disk refuses.
    """
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    data = safetensors.numpy.save(contiguous, dict(texts) if texts else None)
    write_atomically(path, data)
    return sha256_of(data)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a PyTree, or what stands for them, by the names that they have in a file: `encoder.norm.scale`.

    Leaves that are not arrays, such as the activation of an `equinox.nn.MLP`, are left out.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path)[1:]: leaf for path, leaf in leaves if _is_array(leaf)}


def named_settings(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Everything in a PyTree of modules but its arrays, by dotted name: the modules' types and their static fields."""
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
    """`like`, a PyTree of shapes, with the arrays of a file in their places, each in the dtype that it has there.

    Leaves of `like` that are not shapes of arrays are kept.

    Raises `BadInput`, naming `field` and `hint`, for the first array of `path` that is missing, has no place, is of
    another shape or not finite.
    """
    leaves = named_leaves(like)
    for name in sorted(set(tensors) | set(leaves)):
        what = None
        if name not in tensors:
            what = f"lacks {name}"
        elif name not in leaves:
            what = f"has {name}, for which its network has no place"
        elif tensors[name].shape != leaves[name].shape:
            what = f"has {name} of shape {tensors[name].shape} and not {leaves[name].shape}"
        elif not np.isfinite(tensors[name]).all():
            what = f"holds numbers that are not finite in {name}"
        if what:
            raise BadInput(field, f"{path} {what}", hint)
    filled = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in leaves.items()]
    places, rest = eqx.partition(like, _is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(places), filled), rest)


def _is_array(leaf: Any) -> bool:
    # Also of a shape and of a tracer.
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
