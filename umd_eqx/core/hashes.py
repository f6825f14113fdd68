"""Fingerprints of bytes, plain data, and the arrays of a PyTree, as hexadecimal SHA-256."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def sha256_of(data: bytes | Iterable[bytes]) -> str:
    """Returns the SHA-256 of bytes, or of the concatenation of several parts, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in [data] if isinstance(data, bytes) else data:
        digest.update(part)
    return digest.hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, reading it in parts. Raises `OSError` if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Returns the SHA-256 of plain data as JSON with sorted keys, which does not depend on the order of its fields."""
    return sha256_of(json.dumps(value, sort_keys=True).encode())


def sha256_of_weights(leaves: Mapping[str, Any], prefix: bytes = b"") -> str:
    """Returns the SHA-256 of arrays by name, each converted to float32, whatever precision it is stored in.

    **Arguments:**

    - `leaves`: the result of `umd_eqx.core.tensors.named_leaves`.
    - `prefix`: bytes that are hashed before the arrays.
    """

    def parts() -> Iterable[bytes]:
        yield prefix
        for name, leaf in sorted(leaves.items()):
            yield name.encode()
            yield np.ascontiguousarray(leaf, np.float32).tobytes()

    return sha256_of(parts())


def sha256_of_tree(tree: PyTree) -> str:
    """Returns the SHA-256 of every array of a PyTree: its path in the tree, dtype, shape and bytes."""

    def parts() -> Iterable[bytes]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, jax.Array | np.ndarray):
                array = np.asarray(leaf)
                yield f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode()
                yield array.tobytes()

    return sha256_of(parts())
