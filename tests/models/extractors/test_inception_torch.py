"""Inception-v3 against torch-fidelity's, which is another's work, on the same random weights.

Needs `pip install "umd_eqx[parity]"`.
"""

import importlib
import importlib.util
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.tensors import write_tensors
from umd_eqx.models.extractors.inception import InceptionV3, Port
from umd_eqx.models.extractors.inception_table import convolutions
from umd_eqx.models.extractors.pretrained_inception import PUBLISHED, convert_inception, load_inception

WHY = 'parity with PyTorch: pip install "umd_eqx[parity]"'
torch = pytest.importorskip("torch", reason=WHY)
if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip(WHY, allow_module_level=True)


def random_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by the published names, with which activations keep their size and no path is silent."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, conv, inputs in convolutions():
        fan = conv.rows * conv.columns * inputs
        state[f"{name}.conv.weight"] = rng.normal(0, (2 / fan) ** 0.5, (conv.outputs, inputs, conv.rows, conv.columns))
        state[f"{name}.bn.weight"] = rng.normal(1, 0.1, conv.outputs)
        state[f"{name}.bn.bias"] = rng.normal(0, 0.1, conv.outputs)
        state[f"{name}.bn.running_mean"] = rng.normal(0, 0.1, conv.outputs)
        state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, conv.outputs)
    state |= {"fc.weight": rng.normal(0, 2048**-0.5, (1008, 2048)), "fc.bias": rng.normal(size=1008)}
    return {name: array.astype(np.float32) for name, array in state.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights twice: as the published file holds them, and converted."""
    folder, state = tmp_path_factory.mktemp("inception"), random_state()
    torch.save({name: torch.tensor(array) for name, array in state.items()}, folder / "published.pth")
    texts = {"source_sha256": PUBLISHED.sha256}  # which is not true, but only so is the file read
    write_tensors(folder / "ours.safetensors", convert_inception(state), texts)
    return folder / "published.pth", folder / "ours.safetensors"


@pytest.fixture(scope="module")
def theirs(files):
    """torch-fidelity's network. Its package imports torchvision, which one of its modules does without."""
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        names = ["2048", "logits_unbiased", "logits"]
        yield module.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=str(files[0]))
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two grey ramps with noise, not square, of grey levels 0 .. 255."""
    rows, columns = np.mgrid[:40, :56]
    ramps = np.stack([4 * columns, 6 * rows])[..., None] * np.array([1.0, 0.7, 0.3])
    return (ramps + np.random.default_rng(1).uniform(0, 20, ramps.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def ours(files, images):
    @eqx.filter_jit
    def activations(model: InceptionV3, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(model)(images)

    def call(port: Port) -> list[np.ndarray]:
        model = load_inception(files[1], port=port)
        return [np.asarray(out) for out in activations(model, jnp.asarray(images, jnp.float32))]

    return {"pytorch": call("pytorch"), "tensorflow": call("tensorflow")}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, of the largest value."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_it_has_their_number_of_parameters(theirs):
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 23_850_960


def test_features_and_logits_of_the_graph(ours, theirs, images):
    features, without_bias, _ = theirs(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert distance(ours["tensorflow"][0], features.numpy()) < 1e-5
    assert distance(ours["tensorflow"][1], without_bias.numpy()) < 1e-5


def test_features_and_logits_of_the_port_to_pytorch(ours, theirs, images):
    # Its layers, behind the input that pytorch-fid gives them.
    x = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    x = 2 * torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    *layers, logits = theirs.children()
    features = torch.nn.Sequential(*layers)(x).flatten(1)
    assert distance(ours["pytorch"][0], features.numpy()) < 1e-5
    assert distance(ours["pytorch"][1], logits(features).numpy()) < 1e-5


def test_the_ports_and_the_images_differ_by_more_than_the_tolerance(ours):
    # Else the tests above would prove little.
    assert distance(ours["pytorch"][0], ours["tensorflow"][0]) > 1e-3
    assert distance(ours["pytorch"][0][:1], ours["pytorch"][0][1:]) > 1e-2
