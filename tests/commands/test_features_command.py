"""`experiments/features.py`: the arrays, what they depend on, and what is left out or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands.conftest import called as called
from data.own_images import KINDS, as_folder, as_npz, drawn, encode
from data.tiny_sets import image_features, write

from umd_eqx.commands.cli import main
from umd_eqx.commands.features import write_features
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.source_configs import Images
from umd_eqx.eval import EvalContext
from umd_eqx.eval.features import extract
from umd_eqx.recipes.pretrain import umd
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import EVALUATION_KEY


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr("umd_eqx.commands.features.make_mesh", lambda: make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def network(exported) -> str:
    """An export of a network for grey images of 28 px."""
    return exported()


def read(file: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        found = dict(arrays)
    assert found["features"].dtype == np.float32
    lengths = {name: len(found[name]) for name in ("features", "labels", "indices", "names")}
    assert len({*lengths.values()}) == 1, lengths
    return found, json.loads(str(found["metadata"]))


def expected(network: str, source: Any, time: float = 0.0, seed: int = 0) -> Any:
    """The features that evaluations see."""
    given = from_pretrained(network)
    context = EvalContext(source, source, given.path, 28, 8, make_mesh(jax.devices()[:1]))
    key = jax.random.fold_in(jax.random.key(seed), EVALUATION_KEY)
    return extract(given.model, context, "test", np.arange(len(source)), time, key)


@pytest.mark.parametrize("time", ["0", "0.3"])
def test_the_features_are_those_of_the_evaluations(called, network, tmp_path, time):
    folder = as_npz(tmp_path / "some", drawn(30))
    words = ("--run", network, "--data.dir", str(folder), "--time", time, "--seed", "3", "--batch-size", "8")
    code, out, error = called(write_features, *words, "--out", "f.npz", "--json", "f.json")
    assert (code, error) == (0, "")
    found, metadata = read("f.npz")
    images = Images(str(folder)).open("train+test")
    theirs = expected(network, images, float(time), 3)
    np.testing.assert_array_equal(found["features"], theirs.of("both"))
    np.testing.assert_array_equal(found["labels"], images.labels(np.arange(30)))
    np.testing.assert_array_equal(found["indices"], np.arange(30))
    settings = metadata["settings"]
    assert settings["data"] == Images(str(folder)).digest()
    assert settings["network"] == from_pretrained(network).digest
    assert (settings["time"], settings["seed"], settings["features"], settings["layer"]) == (
        float(time),
        3,
        "both",
        None,
    )
    assert (metadata["preset"], metadata["step"], metadata["weights"]) == ("umd-ft", 7, "ema")
    (summary,) = json.loads(Path("f.json").read_text())
    assert (summary["images"], summary["broken"]) == (30, [])
    assert "30 x 128 features" in out


def test_every_kind_of_images_gives_the_same_features(called, network, tmp_path):
    images, found, names = drawn(40), {}, {}
    for kind, make in KINDS.items():
        make(tmp_path / kind, images)
        assert called(write_features, "--run", network, "--data.dir", kind, "--out", f"{kind}.npz")[0] == 0
        arrays, _ = read(f"{kind}.npz")
        found[kind] = [arrays[name].tobytes() for name in ("features", "labels", "indices")]
        names[kind] = dict(zip(arrays["indices"].tolist(), arrays["names"].tolist(), strict=True))
    source = Images("npz").open("train+test")
    records = [{"image": encode(source[i]["image"]), "label": source[i]["label"]} for i in range(len(source))]
    write(tmp_path / "tfds", {"test": records}, image_features((8, 8, 1), classes=10))
    words = ("--data.dir", "tfds", "--data.name", "tiny", "--out", "tfds.npz")
    assert called(write_features, "--run", network, *words)[0] == 0
    arrays, metadata = read("tfds.npz")
    found["tfds"] = [arrays[name].tobytes() for name in ("features", "labels", "indices")]
    assert all(content == found["npz"] for content in found.values())
    assert (arrays["names"][3], metadata["settings"]["split"]) == ("test[3]", "test")
    # The names lead to the images, which are numbered in the order of their drawing.
    for index, name in names["npz"].items():
        number = int(name.removeprefix("data.npz/"))
        np.testing.assert_array_equal(source[index]["image"], images[number][0])
        label = images[number][1]
        assert names["folder"][index] == f"class {label}/{number}.png"
        assert names["tars"][index] == f"shard-{number // 13:03}.tar/a/{number:05}"
        assert names["parquet"][index] == f"train-00000-of-00001.parquet/{number}"


def test_kinds_layers_and_parts_of_the_images(called, network, tmp_path):
    as_folder(tmp_path / "some", [(image, None) for image, _ in drawn(30)])
    words = ("--run", network, "--data.dir", "some", "--batch-size", "8")
    for name, more in {
        "both": (),
        "tokens": ("--features", "class_tokens"),
        "patches": ("--features", "patches"),
        "last": ("--layer", "3"),
        "first": ("--layer", "1"),
        "few": ("--limit", "11"),
        "part": ("--data.split", "test"),
    }.items():
        assert called(write_features, *words, *more, "--out", f"{name}.npz")[0] == 0
    both, tokens, patches, last, first, few, part = (
        read(f"{name}.npz")[0] for name in ("both", "tokens", "patches", "last", "first", "few", "part")
    )
    np.testing.assert_array_equal(both["features"], np.concatenate([tokens["features"], patches["features"]], axis=1))
    np.testing.assert_array_equal(both["features"], last["features"])
    assert np.abs(both["features"] - first["features"]).max() > 0.1
    np.testing.assert_array_equal(both["features"][:11], few["features"])
    np.testing.assert_array_equal(part["features"], both["features"][27:])
    np.testing.assert_array_equal(part["names"], both["names"][27:])
    np.testing.assert_array_equal(both["labels"], -1)
    assert read("first.npz")[1]["layer_name"] == "encoder 1"


def test_images_that_cannot_be_read_are_left_out_and_named(called, network, tmp_path):
    as_folder(tmp_path / "some", drawn(30, classes=2))
    for name in ("cut short.png", "größe.png"):
        (tmp_path / "some" / "class 1" / name).write_bytes(b"no image")
    words = ("--run", network, "--data.dir", "some", "--batch-size", "8")
    code, out, _ = called(write_features, *words, "--out", "f.npz")
    assert code == 0
    arrays, metadata = read("f.npz")
    assert sorted(metadata["broken"]) == ["class 1/cut short.png", "class 1/größe.png"]
    assert "2 images could not be read, left out: " in out
    assert len(arrays["features"]) == 30
    assert not {*metadata["broken"]} & {*arrays["names"].tolist()}
    source = Images("some").open("train+test")
    for index, name, label in zip(arrays["indices"], arrays["names"], arrays["labels"], strict=True):
        assert source.path_of(int(index)) == f"some/{name}"
        assert source.labels(np.array([index]))[0] == label
    code, _, error = called(write_features, *words, "--data.max-broken", "1", "--out", "g.npz")
    assert (code, len(error.splitlines())) == (2, 1)
    assert error.startswith("error: --data.max-broken: 2 broken images, more than 1")
    assert not Path("g.npz").exists()


def test_images_are_converted_to_the_channels_of_the_network(called, network, tmp_path):
    as_folder(tmp_path / "colour", drawn(10, channels=3, classes=2))
    assert called(write_features, "--run", network, "--data.dir", "colour", "--out", "f.npz")[0] == 0
    theirs = expected(network, Images("colour", channels=1).open("train+test"))
    np.testing.assert_allclose(read("f.npz")[0]["features"], theirs.of("both"), atol=1e-5)


def test_without_other_images_those_of_the_network_are_represented(called, network):
    assert called(write_features, "--run", network, "--limit", "9", "--out", "f.npz")[0] == 0
    arrays, metadata = read("f.npz")
    assert (metadata["data"], metadata["settings"]["split"]) == ("fashion_mnist", "test")
    source = umd().data.open()[1]
    np.testing.assert_array_equal(arrays["labels"], source.labels(np.arange(9)))
    assert called(write_features, "--run", network, "--data.split", "train[5:8]", "--out", "g.npz")[0] == 0
    assert read("g.npz")[0]["names"].tolist() == [f"train[5:8][{i}]" for i in range(3)]


def test_a_file_with_the_same_features_is_kept_and_any_other_is_refused(called, network, tmp_path):
    as_npz(tmp_path / "some", drawn(20))
    shutil.copytree(tmp_path / "some", tmp_path / "moved")
    words = ("--run", network, "--out", "f.npz")
    assert called(write_features, *words, "--data.dir", "some")[0] == 0
    content, when = Path("f.npz").read_bytes(), Path("f.npz").stat().st_mtime_ns
    code, out, _ = called(write_features, *words, "--data.dir", "moved")  # the same images
    assert (code, "f.npz already has these features" in out) == (0, True)
    assert Path("f.npz").stat().st_mtime_ns == when
    for more in (("--layer", "1"), ("--limit", "3"), ("--time", "0.1"), ("--features", "patches")):
        code, _, error = called(write_features, *words, "--data.dir", "some", *more)
        assert (code, error.startswith("error: --out: f.npz already exists, with other features")) == (2, True)
    assert Path("f.npz").read_bytes() == content
    Path("f.npz").unlink()
    assert called(write_features, *words, "--data.dir", "some")[0] == 0
    assert Path("f.npz").read_bytes() == content  # byte for byte
    for other in (b"", b"text", content[: len(content) // 2]):
        Path("f.npz").write_bytes(other)
        code, _, error = called(write_features, *words, "--data.dir", "some")
        assert (code, "f.npz already exists, and is not a file of features" in error) == (2, True)
        assert Path("f.npz").read_bytes() == other
    np.savez("f.npz", metadata=np.array([{}], object))  # a pickle, which is not read
    assert called(write_features, *words, "--data.dir", "some")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "f.txt"), "--out: f.txt does not end in .npz"),
        (("--out", "nowhere/f.npz"), "--out: there is no folder nowhere"),
        (("--time", "2"), "--time: 2 is outside [0, 1]"),
        (("--layer", "9"), "--layer: 9 is not the number of a layer. Use 1 (encoder 1) .. 4 (decoder 1)"),
        (("--layer", "0"), "--layer: 0 is too small"),
        (("--limit", "0"), "--limit: 0 is too small"),
        (("--batch-size", "0"), "--batch-size: 0 is too small"),
        (("--data.max-broken", "-1"), "--data.max-broken: -1 is too small"),
        (("--data.split", "nothing"), "--data.split: 'nothing' is not a split"),
        (("--data.dir", "nowhere"), "--data.dir: there is no folder"),
        (("--data.dir", "empty"), "--data.dir: "),
        (("--data.dir", "broken"), "--data.dir: none of the 3 images can be read"),
        (("--run", "nowhere"), "--run: there is no nowhere"),
        (("--data.source", "folder"), "--data.dir: no folder of images is given"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(called, network, here, words, said):
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    for i in range(3):
        (here / "broken" / f"{i}.png").write_bytes(b"")
    given = {"--run": network, "--out": "f.npz"}
    usual = [word for flag, value in given.items() if flag not in words for word in (flag, value)]
    code, _, error = called(write_features, *usual, *words)
    assert (code, len(error.splitlines())) == (2, 1), error
    assert said in error
    assert sorted(path.name for path in here.iterdir()) == ["broken", "empty"]


def test_it_is_a_command_of_a_file_of_ones_own(capsys):
    with pytest.raises(SystemExit) as end:
        main({"mine": umd}, ["features", "--help"])
    assert end.value.code == 0
    assert "--data.dir" in capsys.readouterr().out
