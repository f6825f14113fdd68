"""Patches of an image, and the selection of those that are visible to the encoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from umd_eqx.core.types import Image, Tokens, Vector


class View(eqx.Module):
    """The patches of one image in random order, of which the first `kept` are visible.

    The visible patches enter the encoder in this order, as in the reference; attention does not depend on it.
    """

    order: Int[Array, "n"]
    kept: int = eqx.field(static=True)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Returns the number of visible patches: the floor of n (1 - ratio), as in the reference.

    `mask_ratio` is in [0, 1]. The caller decides whether 0 visible patches are acceptable.
    """
    return int(num_patches * (1.0 - mask_ratio))


def ratios(num_patches: int) -> tuple[float, float]:
    """Returns the mask ratio that hides one patch and the one that leaves one visible, with four digits or more.

    `num_patches` is 2 or more.
    """
    unit = 10 ** max(4, len(str(num_patches)))
    share = unit // num_patches
    # Found by trial: `num_kept` also rounds down values just below an integer, such as 2500 (1 - 0.9996).
    least = next(m for m in range(share, 0, -1) if num_kept(num_patches, m / unit) == num_patches - 1)
    most = next(m for m in range(unit - share, 0, -1) if num_kept(num_patches, m / unit) == 1)
    return least / unit, most / unit


def draw_order(key: PRNGKeyArray, num_patches: int) -> Int[Array, "n"]:
    """Returns a uniformly random order of the patches: the argsort of uniform numbers (He et al. 2021, MAE)."""
    return jnp.argsort(jax.random.uniform(key, (num_patches,), jnp.float32))


def hide(tokens: Tokens, view: View) -> Float[Array, "kept d"]:
    """Returns the visible tokens, in the order of the view."""
    return tokens[view.order[: view.kept]]


def restore(visible: Float[Array, "kept d"], mask_token: Vector, view: View) -> Tokens:
    """Returns all tokens in raster order: visible tokens at their original positions, `mask_token` at hidden ones."""
    num_hidden = view.order.shape[0] - view.kept
    hidden = jnp.broadcast_to(mask_token.astype(visible.dtype), (num_hidden, mask_token.shape[0]))
    return jnp.concatenate([visible, hidden])[jnp.argsort(view.order)]


def hidden_patches(view: View) -> Float[Array, "n"]:
    """Returns the mask m in raster order: 1 for hidden patches, 0 for visible ones (the convention of MAE)."""
    return jnp.ones(view.order.shape[0], jnp.float32).at[view.order[: view.kept]].set(0.0)


def hidden_pixels(view: View, like: Image, patch: int) -> Float[Array, "h w 1"]:
    """Returns the mask m upsampled to the pixels of an image like `like`: 1 for hidden pixels."""
    rows, columns = like.shape[0] // patch, like.shape[1] // patch
    mask = hidden_patches(view).reshape(rows, columns)
    return jnp.repeat(jnp.repeat(mask, patch, axis=0), patch, axis=1)[..., None]


def patchify(image: Image, patch: int) -> Float[Array, "n values"]:
    """Splits an image into patches in raster order; each patch is flattened as (row, column, channel).

    The height and the width must be multiples of `patch`.
    """
    h, w, c = image.shape
    grid = image.reshape(h // patch, patch, w // patch, patch, c)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch * c)


def unpatchify(patches: Float[Array, "n values"], patch: int, height: int, width: int) -> Image:
    """The inverse of `patchify` for an image of `height` x `width` pixels; the channels follow from the values."""
    rows, columns = height // patch, width // patch
    grid = patches.reshape(rows, columns, patch, patch, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(height, width, -1)
