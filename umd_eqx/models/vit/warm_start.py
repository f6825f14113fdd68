"""Fine-tuning: a network initialised from the weights of another, as in the reference, also at other image sizes."""

import math
from typing import TypeVar

import jax
from jaxtyping import Array, Float

from umd_eqx.core.errors import BadInput
from umd_eqx.models.base import AbstractModel

REINITIALISED = tuple(f".condition.{part}{name}" for part in ("", "end.") for name in ("label_table", "label."))
"""The parameters that fine-tuning reinitialises: the label table and its MLP. The time trunk is kept."""

Network = TypeVar("Network", bound=AbstractModel)

POSITIONS = (".positions", ".decoder_positions")


def warm_start(
    fresh: Network, source: AbstractModel, field: str = "from", *, anew: tuple[str, ...] = REINITIALISED
) -> Network:
    """Returns `fresh` with the weights of `source`, except the label table and label MLP.

    This is how fine-tuning starts in the code of the paper (arXiv 2406.17688). Position tables are resampled if the
    image sizes, and with them the patch grids, differ.

    **Arguments:**

    - `fresh`: the network to be trained: arrays or, for a check without computation, their shapes.
    - `source`: the network with the weights, of the same variant, conditioning, patch size and channels.
    - `field`: the field that named the source.
    - `anew`: prefixes of the parameters that keep their values in `fresh`.

    **Raises:** `BadInput` naming the parameters whose shapes do not match or that `source` lacks.
    """
    theirs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    misfits = []

    def take(path: tuple[jax.tree_util.KeyEntry, ...], mine: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name.startswith(anew):
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
        problem = f"the weights are those of another network: {some}"
        raise BadInput(field, problem, "Choose a source with the same network")
    return started


def resample_positions(table: Float[Array, "n d"], num_patches: int) -> Float[Array, "m d"]:
    """Resamples a position table to another patch grid: bilinear, half-pixel centres (Dosovitskiy et al. 2021, 3.2).

    The embeddings keep their width; both grids are square. Returns the table itself if the grid is unchanged.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(num_patches)
    if old == new:
        return table
    grid = table.reshape(old, old, -1)
    return jax.image.resize(grid, (new, new, table.shape[1]), "linear", antialias=False).reshape(new * new, -1)
