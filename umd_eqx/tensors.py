"""Arrays by name in a safetensors file: a format that holds numbers and text and nothing that could be executed."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp  # numpy then knows bfloat16 by its name, which is how safetensors asks for it
import numpy as np
import safetensors
import safetensors.numpy

from umd_eqx.errors import BadInput

Tensors = Mapping[str, np.ndarray]


def read_tensors(
    path: str | os.PathLike[str], field: str = "--weights"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and the texts of its header.

    **Arguments:**

    - `path`: of a local file.
    - `field`: the flag that named it.

    **Raises:** `BadInput` for a file that is missing, cannot be read, is no safetensors file (a pickle, for example),
    whose header does not fit its length, or that holds numbers of a kind unknown to numpy (bfloat16 is known). Nothing
    of the file is executed, and no more is allocated than it holds.
    """
    way_out = "Give a .safetensors file"
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise BadInput(field, f"{path} is no file", way_out)
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            names = list(file.keys())
            return {name: np.asarray(file.get_tensor(name)) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise BadInput(field, f"there is no file {path}", way_out) from error
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror or error})", way_out) from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        # The words may be the file's own: on one line, and nothing that a terminal would obey.
        words = "".join(c if c.isprintable() else " " for c in str(error))
        problem = f"{path} is no safetensors file that can be read ({' '.join(words.split())[:160]})"
        raise BadInput(field, problem, f"{way_out}; nothing in this one was executed") from error


def write_tensors(path: str | os.PathLike[str], tensors: Tensors, texts: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name, and texts into the header, as one safetensors file, in one piece.

    Raises `OSError` if the disk refuses.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.tmp")
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    unfinished.write_bytes(safetensors.numpy.save(contiguous, dict(texts) if texts else None))
    unfinished.replace(path)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a PyTree, or what stands for them, by the names that they have in a file: `encoder.norm.scale`."""
    return {jax.tree_util.keystr(path)[1:]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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


def fill(like: Any, tensors: Tensors, path: str | os.PathLike[str], field: str, way_out: str) -> Any:
    """`like`, a PyTree of shapes, with the arrays of a file in their places, each in the dtype that it has there.

    Raises `BadInput`, naming `field` and `way_out`, for the first array of `path` that is missing, has no place, is of
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
            raise BadInput(field, f"{path} {what}", way_out)
    filled = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Of a file, in hexadecimal. Raises `OSError` if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
