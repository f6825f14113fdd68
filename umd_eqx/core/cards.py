"""The JSON cards beside weights: how exports, tokenizers and classifiers are written, and how they are read, once.

A card lies beside its safetensors file, under the same name with `.json` behind it. It holds the SHA-256 of that file
and the number of its parameters; some cards also have a checksum of themselves. What else a card says is its owner's.
"""

import contextlib
import json
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
from umd_eqx.core.tensors import TensorFile, named_leaves, read_tensor_file, write_tensors

CHECKSUM = "checksum"

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a damaged or a hostile card may raise."""


def card_of(path: str | os.PathLike[str]) -> Path:
    """Where the card of a weights file lies."""
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

    - `path`: of the weights; an existing file is replaced.
    - `card`: plain data; `parameters` and `sha256` are added.
    - `dtype`: in which the arrays are stored.
    - `seal`: whether the card gets a checksum of itself.

    **Raises:** `OSError` if the disk refuses.
    """
    tensors = {name: np.asarray(leaf, dtype) for name, leaf in named_leaves(tree).items()}
    sha256 = write_tensors(path, tensors)
    content = {**card, "parameters": sum(tensor.size for tensor in tensors.values()), "sha256": sha256}
    save_json(card_of(path), sealed(content) if seal else content)
    return card_of(path)


def read_weights(path: str | os.PathLike[str], field: str) -> TensorFile:
    """The weights, opened and read once. Raises `BadInput` as `umd_eqx.core.tensors.read_tensor_file` does."""
    return read_tensor_file(path, field)


@contextlib.contextmanager
def open_card(
    path: str | os.PathLike[str], field: str, hint: str, *, newest: int | None = None
) -> Iterator[dict[str, Any]]:
    """The card beside `path`, for a `with` block that takes apart what it says.

    **Arguments:**

    - `path`: of the weights.
    - `field`: the flag that named them.
    - `hint`: what to do about a card that cannot be read.
    - `newest`: the largest `format` that is read; None where cards of this kind have none.

    **Raises:** `BadInput` where there is no card, where it is of a later format, and for whatever the block raises of
    `UNREADABLE`. A `BadInput` of the block is left as it is.
    """
    card = card_of(path)
    try:
        content = json.loads(card.read_text())
        if newest is not None and content["format"] > newest:
            raise BadInput(field, f"{card} was written by a newer version of this program", "Update it")
        yield content
    except FileNotFoundError as error:
        raise BadInput(field, f"{path} has no card beside it", f"Put {card.name} into the same folder") from error
    except BadInput:
        raise
    except UNREADABLE as error:
        raise BadInput(field, f"{card} cannot be read", hint) from error


def require_described(path: str | os.PathLike[str], weights: TensorFile, sha256: Any, field: str, hint: str) -> None:
    """Raises `BadInput` where `sha256`, which a card says, is not that of the weights that were read."""
    if sha256 != weights.sha256:
        raise BadInput(field, f"{path} is not the file that its card describes", hint)


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card with its checksum, of everything else that it says: 16 hexadecimal digits. It must be plain JSON."""
    rest = {name: value for name, value in card.items() if name != CHECKSUM}
    return rest | {CHECKSUM: sha256_of_json(rest)[:16]}


def is_intact(card: Mapping[str, Any]) -> bool:
    """Whether a card that was read says what it said when it was sealed."""
    return card.get(CHECKSUM) == sealed(card)[CHECKSUM]
