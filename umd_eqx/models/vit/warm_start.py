"""A network that begins with another one's weights: fine-tuning, as the reference does, also at another image size."""

import math
from typing import TypeVar

import jax
from jaxtyping import Array, Float

from umd_eqx.core.errors import BadInput
from umd_eqx.models.base import AbstractModel

FRESH = tuple(f".condition.{part}{name}" for part in ("", "end.") for name in ("label_table", "label."))
"""What fine-tuning begins anew: the label table and its MLP. The trunk of the time is kept."""

Network = TypeVar("Network", bound=AbstractModel)

POSITIONS = (".positions", ".decoder_positions")


def warm_start(fresh: Network, source: AbstractModel, field: str = "--from") -> Network:
    """`fresh` with the weights of `source`, all but the label table and the label MLP (reference.md, section 4).

    Position tables are resampled where the images, and so the grids of patches, differ in size.

    **Arguments:**

    - `fresh`: the network to be trained; arrays or, to check whether it would fit, their shapes.
    - `source`: where the weights come from: the same variant, conditioning, patch and channels.
    - `field`: the flag that named the source.

    **Raises:** `BadInput` naming the parameters whose shapes do not fit, or that `source` does not have.
    """
    theirs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    misfits = []

    def take(path: tuple[jax.tree_util.KeyEntry, ...], mine: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name.startswith(FRESH):
            return mine
        found = theirs.get(name)
        if found is not None and name in POSITIONS:
            found = resample_positions(found, mine.shape[0])
        if found is None or found.shape != mine.shape:
            misfits.append(f"{name[1:]} {'-' if found is None else found.shape} for {mine.shape}")
            return mine
        return found.astype(mine.dtype)

    started = jax.tree_util.tree_map_with_path(take, fresh)
    if misfits:
        some = "; ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise BadInput(field, f"weights of another network: {some}", "Take a source with the same network")
    return started


def resample_positions(table: Float[Array, "n d"], num_patches: int) -> Float[Array, "m d"]:
    """A table of positions for another grid of patches: bilinear, half-pixel centres (Dosovitskiy et al. 2021, 3.2).

    The embeddings keep their size; both grids are square. Gives the table itself where nothing changes.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(num_patches)
    if old == new:
        return table
    grid = table.reshape(old, old, -1)
    return jax.image.resize(grid, (new, new, table.shape[1]), "linear", antialias=False).reshape(new * new, -1)
