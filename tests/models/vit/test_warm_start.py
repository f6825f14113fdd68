"""A network that begins with another one's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.models.vit.warm_start import resample_positions, warm_start


def named(model) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(model)}


@pytest.mark.parametrize(
    "config",
    [{"conditioning": "adaln"}, {"conditioning": "shared-adaln"}, {"conditioning": "token"}, {"prediction": "u"}],
)
def test_all_but_the_labels_is_the_sources(random_model, config):
    source = random_model(seed=1, **config)
    fresh = random_model(labels=True, seed=2, **config)
    started = warm_start(fresh, source)
    theirs, new, mine = named(source), named(fresh), named(started)
    assert mine.keys() == new.keys()
    condition = ".condition.end" if "prediction" in config else ".condition"
    labels = {name for name in mine if name.startswith(f"{condition}.label")}
    assert len(labels) == 5  # the table, and two layers of kernel and bias
    for name, value in mine.items():
        np.testing.assert_array_equal(value, new[name] if name in labels else theirs[name], err_msg=name)
    assert started.num_classes == fresh.num_classes == 5


def test_labels_of_the_source_are_not_kept(random_model):
    source, fresh = random_model(labels=True, seed=1), random_model(labels=True, seed=2)
    started = warm_start(fresh, source)
    np.testing.assert_array_equal(started.condition.label_table, fresh.condition.label_table)
    np.testing.assert_array_equal(started.condition.time.up.kernel, source.condition.time.up.kernel)


def test_another_image_size_resamples_the_positions_and_nothing_else(random_model):
    source, fresh = random_model(size=8, seed=1), random_model(size=16, labels=True, seed=2)
    started = warm_start(fresh, source)
    assert started.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(started.positions, resample_positions(source.positions, 16))
    np.testing.assert_array_equal(started.encoder.norm.scale, source.encoder.norm.scale)


def test_a_table_of_positions_of_a_plane_stays_a_plane():
    # Bilinear interpolation is exact on linear functions, away from the edges, with pixel centres at (i + 1/2) / n.
    def plane(n: int) -> jnp.ndarray:
        centres = (np.arange(n) + 0.5) / n
        rows, columns = np.meshgrid(centres, centres, indexing="ij")
        return jnp.asarray((3.0 * rows - columns).reshape(-1, 1), jnp.float32)

    np.testing.assert_allclose(
        resample_positions(plane(4), 64).reshape(8, 8)[1:-1, 1:-1], plane(8).reshape(8, 8)[1:-1, 1:-1], atol=1e-6
    )
    table = plane(4)
    assert resample_positions(table, 16) is table


@pytest.mark.parametrize(
    ("source", "fresh", "named"),
    [
        ({"variant": "mu/4"}, {"variant": "mu/2"}, "embed.kernel"),
        ({"variant": "mu/4", "channels": 1}, {"variant": "mu/4"}, "embed.kernel"),
        ({"conditioning": "token"}, {"conditioning": "adaln"}, "encoder.conditioning.layers"),
        ({"class_tokens": 1}, {"class_tokens": 4}, "class_tokens (1, 64) for (4, 64)"),
        ({"prediction": "v"}, {"prediction": "x0_eps"}, "head.kernel"),
        ({"prediction": "v"}, {"prediction": "u"}, "condition.end.time"),
    ],
)
def test_another_network_is_refused_by_the_names_of_its_parameters(random_model, source, fresh, named):
    with pytest.raises(BadInput, match="from: the weights are those of another network") as error:
        warm_start(random_model(**fresh), random_model(**source))
    assert named in str(error.value)
    assert len(str(error.value)) < 400
