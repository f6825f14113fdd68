"""The filter of what is trained: which leaves it selects, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.training.trainable import EVERYTHING, AllExcept, Only, parameter_names


class Layer(eqx.Module):
    kernel: jax.Array
    bias: jax.Array | None = None


class Network(eqx.Module):
    """Parameters at several depths, and leaves that are not parameters."""

    layers: tuple[Layer, ...]
    layers_norm: jax.Array
    head: Layer
    count: jax.Array
    activation: object = jax.nn.relu
    size: int = eqx.field(static=True, default=3)


@pytest.fixture
def network() -> Network:
    layers = (Layer(jnp.ones((2, 2)), jnp.ones(2)), Layer(jnp.ones((2, 2))))
    return Network(layers, jnp.ones(2), Layer(jnp.ones((2, 1)), jnp.ones(1)), jnp.arange(3))


ALL = ["layers.0.kernel", "layers.0.bias", "layers.1.kernel", "layers_norm", "head.kernel", "head.bias"]


def trained(trainable, network) -> list[str]:
    return parameter_names(eqx.filter(network, trainable(network)))


def test_by_default_every_floating_point_array_is_trained(network):
    assert parameter_names(network) == trained(EVERYTHING, network) == ALL
    everything = eqx.filter(network, eqx.is_inexact_array)
    assert eqx.tree_equal(eqx.filter(network, EVERYTHING(network)), everything)


@pytest.mark.parametrize(
    ("prefixes", "selected"),
    [
        (("head",), ["head.kernel", "head.bias"]),
        (("layers",), ["layers.0.kernel", "layers.0.bias", "layers.1.kernel"]),  # and not layers_norm
        (("layers.1", "head.bias"), ["layers.1.kernel", "head.bias"]),
        (("layers_norm", "layers_norm"), ["layers_norm"]),
    ],
)
def test_a_prefix_selects_whole_components_of_a_name(network, prefixes, selected):
    assert trained(Only(prefixes), network) == selected
    assert trained(AllExcept(prefixes), network) == [name for name in ALL if name not in selected]


def test_the_selection_is_the_same_for_arrays_shapes_and_tracers(network):
    trainable = AllExcept(("layers.0", "head.bias"))
    shapes = eqx.filter_eval_shape(lambda: network)
    found = []

    @eqx.filter_jit
    def traced(network):
        found.append(trainable(network))

    traced(network)
    expected = jax.tree.leaves(trainable(network))
    assert jax.tree.leaves(trainable(shapes)) == jax.tree.leaves(found[0]) == expected
    assert all(isinstance(leaf, bool) for leaf in expected)


@pytest.mark.parametrize(
    ("trainable", "field", "said"),
    [
        (
            AllExcept(("haed",)),
            "trainable.frozen",
            r"begins with 'haed'\. Did you mean head\? Choose one of: layers, layers",
        ),
        (AllExcept(("head", "layer")), "trainable.frozen", "begins with 'layer'"),
        (AllExcept(("count",)), "trainable.frozen", "begins with 'count'"),
        (AllExcept(("layers.0.kernel.x",)), "trainable.frozen", "Did you mean layers.0.kernel"),
        (AllExcept(("",)), "trainable.frozen", "begins with ''"),
        (AllExcept(("layers", "layers_norm", "head")), "trainable.frozen", "every parameter is frozen"),
        (Only(("heads",)), "trainable.trained", "begins with 'heads'"),
        (Only(()), "trainable.trained", "no parameter is given"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_in_one_line(network, trainable, field, said):
    with pytest.raises(BadInput, match=said) as error:
        trainable(network)
    assert error.value.field == field
    assert "\n" not in str(error.value)
