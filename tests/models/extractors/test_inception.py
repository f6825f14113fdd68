"""Inception-v3 without its weights: layers, shapes, the two resizes, and what is said of files that do not fit."""

import hashlib
import urllib.error
import urllib.request

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import write_tensors
from umd_eqx.models.extractors import pretrained_inception
from umd_eqx.models.extractors.base import resize_bilinear
from umd_eqx.models.extractors.inception import ConvNorm, InceptionV3, Port, resize_tensorflow
from umd_eqx.models.extractors.inception_table import (
    BLOCKS,
    NORM,
    STEM,
    Pool,
    convolutions,
    parameter_shapes,
    side_by_side,
)
from umd_eqx.models.extractors.pretrained_inception import (
    PUBLISHED,
    Published,
    convert_inception,
    fetch_published,
    find_inception,
    load_inception,
    missing_inception,
    read_published,
)

OURS = {"source_sha256": PUBLISHED.sha256}


def shapes_of(model: InceptionV3, *shape: int) -> tuple[tuple[int, ...], ...]:
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tuple(out.shape for out in eqx.filter_eval_shape(lambda model, image: model(image), model, image))


@pytest.fixture(scope="module")
def abstract() -> InceptionV3:
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in parameter_shapes().items()}
    return jax.eval_shape(InceptionV3.from_tensors, arrays)


@pytest.fixture(scope="module")
def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes().items()}


@pytest.fixture(scope="module")
def converted(zeros, tmp_path_factory):
    """A file that has all that is asked for (of weights only the shapes are)."""
    path = tmp_path_factory.mktemp("inception") / "zeros.safetensors"
    write_tensors(path, zeros | {"fc.bias": np.arange(1008, dtype=np.float32)}, OURS)
    return path


# ------------------------------------------------------------------------------------------------------- the network


def test_it_has_as_many_parameters_as_the_published_network():
    # What torch-fidelity's module counts (weights, and scale and bias of batch norms), and the published statistics.
    count = {name: int(np.prod(shape)) for name, shape in parameter_shapes().items()}
    statistics = sum(size for name, size in count.items() if name.endswith((".mean", ".var")))
    assert sum(count.values()) - statistics == 23_850_960
    assert statistics == 2 * 17_216
    assert len(list(convolutions())) == 94
    # In float32 this is the published file, but for the names of its 472 arrays.
    assert 0 < PUBLISHED.size - 4 * sum(count.values()) < 100_000


def test_features_and_logits_of_any_size(abstract):
    assert shapes_of(abstract, 8, 8, 3) == ((2048,), (1008,))
    assert shapes_of(abstract, 31, 300, 1) == ((2048,), (1008,))
    assert abstract.name == "inception"


def test_other_channels_are_refused(abstract):
    with pytest.raises(ValueError, match="4 channels"):
        shapes_of(abstract, 8, 8, 4)


def test_every_layer_of_the_table_is_named_once_and_pooled_as_published():
    names = [name for name, _, _ in convolutions()]
    assert len(names) == len(set(names))
    pools = {block.name: [s for b in block.branches for s in b if isinstance(s, Pool)] for block in BLOCKS}
    halved = {name for name, (pool,) in pools.items() if pool == Pool("max", 2)}
    averaged = {name for name, (pool,) in pools.items() if pool == Pool("average")}
    assert (halved, set(pools) - halved - averaged) == ({"Mixed_6a", "Mixed_7a"}, {"Mixed_7c"})
    assert pools["Mixed_7c"] == [Pool("max")]
    assert [c.name for step in STEM for c in side_by_side(step)] == [name for name in names if "Mixed" not in name]


def test_a_convolution_is_normalised_by_its_stored_statistics():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(5, 6, 2)), rng.normal(size=(3, 1, 2, 4))
    scale, bias, mean = rng.normal(size=(3, 4))
    var = rng.uniform(0.0, 0.01, 4)  # small, so that 1e-3 matters
    layer = ConvNorm(*(jnp.asarray(a, jnp.float32) for a in (kernel, scale, bias, mean, var)))
    rows = np.pad(x, ((1, 1), (0, 0), (0, 0)))
    convolved = sum(rows[i : i + 5] @ kernel[i, 0] for i in range(3))
    expected = np.maximum((convolved - mean) / np.sqrt(var + 1e-3) * scale + bias, 0.0)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32), 1, True), expected, rtol=1e-4, atol=1e-4)
    halved = layer(jnp.asarray(x, jnp.float32), 2, False)
    np.testing.assert_allclose(halved, expected[1:4:2, ::2], rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- the resize


def test_tensorflows_resize_by_hand():
    column = jnp.asarray([[0.0], [10.0], [30.0]])[:, :, None] * jnp.ones((1, 2, 1))
    out = resize_tensorflow(column, 6)
    # Row i reads at i / 2: the first coincides, the last repeats the edge.
    np.testing.assert_allclose(out[:, 0, 0], [0.0, 5.0, 10.0, 20.0, 30.0, 30.0], atol=1e-6)
    np.testing.assert_array_equal(out, jnp.broadcast_to(out[:, :1], out.shape))


def test_the_two_resizes_are_half_a_pixel_apart():
    # On a slope of one grey level a pixel they differ by (h / side - 1) / 2, away from the edges.
    slope = jnp.arange(32.0)[:, None, None] * jnp.ones((1, 32, 1))
    ours, theirs = resize_bilinear(slope, 96), resize_tensorflow(slope, 96)
    np.testing.assert_allclose((ours - theirs)[2:-3], (32 / 96 - 1) / 2, atol=1e-4)


def test_an_image_of_the_right_size_is_left_alone():
    image = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (9, 9, 3)), jnp.float32)
    np.testing.assert_array_equal(resize_tensorflow(image, 9), image)


# -------------------------------------------------------------------------------------------------------------- files


def test_a_converted_file_is_read(converted):
    model = load_inception(converted, port="tensorflow")
    assert (model.port, model.name) == ("tensorflow", "inception")
    np.testing.assert_array_equal(model.fc.bias, np.arange(1008))
    assert model.layers["Mixed_7c.branch3x3_2b"].kernel.shape == (3, 1, 384, 384)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == sum(map(np.prod, parameter_shapes().values()))


FIRST = "Conv2d_1a_3x3.kernel"


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, f"lacks {FIRST}"),
        ({FIRST: np.zeros((32, 3, 3, 3), np.float32)}, r"is float32 \(32, 3, 3, 3\), not float32 \(3, 3, 3, 32\)"),
        ({FIRST: np.zeros((3, 3, 3, 32), np.float16)}, "is float16"),
        ({FIRST: np.full((3, 3, 3, 32), np.nan, np.float32)}, "not finite"),
        ({FIRST: np.zeros((3, 3, 3, 32), np.float32)}, "lacks Conv2d_1a_3x3.scale"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, complaint):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, tensors, OURS)
    with pytest.raises(BadInput, match=complaint) as refusal:
        load_inception(path)
    assert refusal.value.field == "inception_weights"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("texts", [None, {"source_sha256": "0" * 64}])
def test_other_weights_are_not_taken_for_the_published_ones(zeros, tmp_path, texts):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, zeros, texts)
    with pytest.raises(BadInput, match="not converted from the published weights"):
        load_inception(path)


def test_where_weights_are_looked_for(converted, tmp_path, monkeypatch):
    opened = []

    def load(path, field: str = "inception_weights", port: Port = "pytorch"):
        opened.append((str(path), field, port))

    monkeypatch.setattr(pretrained_inception, "load_inception", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("UMD_EQX_INCEPTION", raising=False)
    assert find_inception() is None
    assert opened == []
    kept = tmp_path / "umd_eqx" / "inception-2015-12-05.safetensors"
    kept.parent.mkdir()
    kept.touch()
    find_inception(port="tensorflow")
    monkeypatch.setenv("UMD_EQX_INCEPTION", "from-environment")
    find_inception()
    find_inception("named")
    monkeypatch.setenv("UMD_EQX_INCEPTION", "")
    find_inception()
    assert opened == [
        (str(kept), str(kept), "tensorflow"),
        ("from-environment", "$UMD_EQX_INCEPTION", "pytorch"),
        ("named", "inception_weights", "pytorch"),
        (str(kept), str(kept), "pytorch"),
    ]


def test_a_named_file_that_is_not_there_is_an_error_and_not_a_reason_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("UMD_EQX_INCEPTION", str(tmp_path / "gone"))
    with pytest.raises(BadInput, match=r"\$UMD_EQX_INCEPTION: there is no file"):
        find_inception()


def test_the_way_to_weights_is_one_line():
    line = missing_inception()
    assert "convert_inception.py --download" in line
    assert "\n" not in line


# ------------------------------------------------------------------------------------------------------- conversion


@pytest.fixture(scope="module")
def state(zeros) -> dict[str, np.ndarray]:
    """What the published file holds, by its names and in its order of axes; every array of another number."""
    theirs = dict(zip(NORM, ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"), strict=True))
    arrays = {}
    for i, (name, conv, inputs) in enumerate(convolutions()):
        shape = (conv.outputs, inputs, conv.rows, conv.columns)
        arrays[f"{name}.conv.weight"] = np.broadcast_to(np.float32(i), shape)
        arrays |= {f"{name}.{part}": np.full(conv.outputs, i, np.float32) for part in theirs.values()}
        arrays[f"{name}.bn.num_batches_tracked"] = np.asarray(0)
    return arrays | {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}


def test_conversion_turns_the_axes(state):
    kernel = np.arange(192 * 80 * 3 * 3, dtype=np.float32).reshape(192, 80, 3, 3)
    tensors = convert_inception(state | {"Conv2d_4a_3x3.conv.weight": kernel})
    assert {name: tensor.shape for name, tensor in tensors.items()} == parameter_shapes()
    assert tensors["Conv2d_4a_3x3.kernel"][1, 2, 5, 7] == kernel[7, 5, 1, 2]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"fc.bias": None}, "fc.bias is missing"),
        ({"Mixed_6e.branch7x7_2.bn.running_var": None}, "Mixed_6e.branch7x7_2.bn.running_var is missing"),
        ({"fc.weight": np.zeros((1000, 2048))}, r"fc.weight has shape \(1000, 2048\)"),
        ({"fc.bias": np.zeros((1, 1008))}, r"fc.bias has shape \(1, 1008\)"),
        ({"AuxLogits.fc.bias": np.zeros(3)}, "'AuxLogits.fc.bias' is not part of the network"),
    ],
)
def test_a_state_of_another_network_is_named(state, changed, complaint):
    changed = {name: array for name, array in (state | changed).items() if array is not None}
    with pytest.raises(BadInput, match=complaint):
        convert_inception(changed)


DATA = b"weights"
SMALL = Published("https://localhost/file.pth", hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_only_the_published_bytes_are_read(tmp_path):
    path = tmp_path / "file.pth"
    for data, complaint in ((b"other size", "10 bytes, not 7"), (b"WEIGHTS", "is not that of the published file")):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=complaint):
            read_published(path, SMALL)
    path.write_bytes(DATA)
    assert read_published(path, SMALL) == DATA
    for missing in (tmp_path / "gone", tmp_path):
        with pytest.raises(BadInput, match="there is no file"):
            read_published(missing, SMALL)


@pytest.mark.parametrize("data", [b"", b"WEIGHTS", b"weights and more"])
def test_what_is_fetched_is_checked_before_it_has_its_name(tmp_path, data):
    served = tmp_path / "served"
    served.write_bytes(data)
    with pytest.raises(BadInput, match="another SHA-256"):
        fetch_published(tmp_path / "cache" / "file.pth", SMALL._replace(url=served.as_uri()))
    assert not (tmp_path / "cache").exists()
    served.write_bytes(DATA)
    fetch_published(tmp_path / "cache" / "file.pth", SMALL._replace(url=served.as_uri()))
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [DATA]
    with pytest.raises(BadInput, match="cannot be written"):
        fetch_published(served / "file.pth", SMALL._replace(url=served.as_uri()))


def test_without_a_network_the_address_is_named(tmp_path, monkeypatch):
    def refuse(url: str, timeout: float):
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(BadInput, match=r"cannot be downloaded \(no route\)") as refusal:
        fetch_published(tmp_path / "file.pth", SMALL)
    assert SMALL.url in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
