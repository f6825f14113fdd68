"""The JSON cards beside weights, with which exports, tokenizers and classifiers are written and read.

A card lies beside its safetensors file, under the same name with the suffix `.json`. It holds the SHA-256 of that file
and the number of its parameters; some cards also hold a checksum of themselves. All other entries are up to the caller.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from numpy.typing import DTypeLike

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.hashes import sha256_of_json
from umd_eqx.core.json_files import read_json
from umd_eqx.core.tensors import TensorFile, named_leaves, read_tensor_file, write_tensors

CHECKSUM = "checksum"

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The exceptions that reading a damaged or malicious card may raise."""


def card_of(path: str | os.PathLike[str]) -> Path:
    """Returns the path of the card of a weights file."""
    return Path(path).with_suffix(".json")


def save_weights(
    path: str | os.PathLike[str],
    tree: PyTree,
    card: Mapping[str, Any],
    *,
    dtype: DTypeLike = np.float32,
    seal: bool = False,
) -> Path:
    """Writes the arrays of a PyTree as safetensors, and their card beside them; returns the path of the card.

    **Arguments:**

    - `path`: the file for the weights; an existing file is replaced.
    - `card`: plain data; `parameters` and `sha256` are added.
    - `dtype`: the dtype in which the arrays are stored.
    - `seal`: whether to add a checksum of the card itself.

    **Raises:** `OSError` if a file cannot be written.
    """
    tensors = {name: np.asarray(leaf, dtype) for name, leaf in named_leaves(tree).items()}
    sha256 = write_tensors(path, tensors)
    content = {**card, "parameters": sum(tensor.size for tensor in tensors.values()), "sha256": sha256}
    save_json(card_of(path), sealed(content) if seal else content)
    return card_of(path)


def read_weights(path: str | os.PathLike[str], field: str) -> TensorFile:
    """Reads the weights in one pass. Raises `BadInput` as `umd_eqx.core.tensors.read_tensor_file` does."""
    return read_tensor_file(path, field)


@contextlib.contextmanager
def open_card(
    path: str | os.PathLike[str], field: str, hint: str, *, newest: int | None = None
) -> Iterator[dict[str, Any]]:
    """Opens the card beside `path` as the context of a `with` block that interprets its content.

    **Arguments:**

    - `path`: the weights file.
    - `field`: the field that named it.
    - `hint`: what to do if the card cannot be read.
    - `newest`: the latest supported `format`; None if cards of this kind have no format.

    **Raises:** `BadInput` if the card is missing or of a later format, or if the block raises one of `UNREADABLE`. A
    `BadInput` that the block raises passes unchanged.
    """
    card = card_of(path)
    try:
        content = read_json(card)
        if newest is not None and content["format"] > newest:
            raise BadInput(field, f"{card} was written by a newer version of this program", "Update the program")
        yield content
    except FileNotFoundError as error:
        raise BadInput(field, f"{path} has no card beside it", f"Put {card.name} into the same folder") from error
    except BadInput:
        raise
    except UNREADABLE as error:
        raise BadInput(field, f"{card} cannot be read", hint) from error


def require_described(path: str | os.PathLike[str], weights: TensorFile, sha256: Any, field: str, hint: str) -> None:
    """Raises `BadInput` if `sha256`, as stated by a card, differs from that of the weights that were read."""
    if sha256 != weights.sha256:
        raise BadInput(field, f"{path} is not the file that its card describes", hint)


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a card with a checksum of all its other entries, 16 hexadecimal digits. The card must be plain JSON."""
    rest = {name: value for name, value in card.items() if name != CHECKSUM}
    return rest | {CHECKSUM: sha256_of_json(rest)[:16]}


def is_intact(card: Mapping[str, Any]) -> bool:
    """Whether a card is unchanged since it was sealed."""
    return card.get(CHECKSUM) == sealed(card)[CHECKSUM]
