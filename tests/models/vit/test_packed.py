"""Packed tokens: what lies where, and that only attention sees where an image ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models.vit.attention import Attention
from umd_eqx.models.vit.packed import Embedded, Packed, Segment, conditioned, pack, unpack

RNG = np.random.default_rng(0)
# Two rows of a batch: three images of 3 tokens in each, and one of 5.
GROUPS = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((2, 3, 3, 8), (2, 1, 5, 8))]
SEGMENTS = (Segment(3, 3), Segment(1, 5))


def test_unpacking_is_the_inverse_of_packing():
    packed = pack(GROUPS)
    assert packed.shape == (2, 3 * 3 + 5, 8)
    for group, back in zip(GROUPS, unpack(packed, SEGMENTS), strict=True):
        np.testing.assert_array_equal(group, back)


def test_every_token_is_given_the_entry_of_its_image_or_its_own():
    entries = jnp.asarray(RNG.normal(size=(2, 4, 8)), jnp.float32)
    copies = np.concatenate([np.repeat(entries[:, :3], 3, axis=1), np.repeat(entries[:, 3:], 5, axis=1)], axis=1)
    tokens = pack(GROUPS)
    of_images = conditioned(jnp.multiply, SEGMENTS, [tokens], [Embedded(entries)])
    of_tokens = conditioned(jnp.multiply, SEGMENTS, [tokens], [Embedded(jnp.asarray(copies), per_token=True)])
    np.testing.assert_array_equal(of_images, np.asarray(tokens) * copies)
    np.testing.assert_array_equal(of_tokens, of_images)


@pytest.mark.parametrize("prefixed", [False, True])
def test_an_image_attends_to_itself_alone(prefixed):
    attention = Attention.init(8, 2, key=jax.random.key(0))
    positions = jnp.zeros((2, 14, 2))
    prefix = jnp.asarray(RNG.normal(size=(2, 4, 8)), jnp.float32) if prefixed else None
    packed = Packed(pack(GROUPS), positions, SEGMENTS)
    before = attention(packed, prefix)
    np.testing.assert_array_equal(before.shape, (2, 14, 8))
    moved = attention(packed.with_tokens(packed.tokens.at[1, 4].add(1.0)), prefix)  # the second image of row 1
    changed = np.any(np.asarray(before != moved), axis=-1)
    expected = np.zeros((2, 14), bool)
    expected[1, 3:6] = True
    np.testing.assert_array_equal(changed, expected)
    if prefix is not None:
        other = np.any(np.asarray(before != attention(packed, prefix.at[0, 3].add(1.0))), axis=-1)
        np.testing.assert_array_equal(other, np.arange(14)[None] * [[1], [0]] >= 9)
