"""Trained networks from runs and exports; and what is refused."""

import hashlib
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, tiny

from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.objectives import masked_reconstruction
from umd_eqx.recipes.dump import dump
from umd_eqx.runs.pretrained import SHIPPED, export, from_pretrained
from umd_eqx.runs.run import run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of two steps."""
    directory = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(tiny(eval={}), run_dir=directory, preset="umd", limit_steps=2)
    return directory


@pytest.fixture(scope="module")
def exported(done, tmp_path_factory):
    """Its average, exported."""
    path = tmp_path_factory.mktemp("export") / "small.safetensors"
    export(from_pretrained(done), path)
    return path


def leaves(model) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def test_a_run_gives_either_weights_and_is_left_as_it_is(done):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    ema, raw = from_pretrained(done), from_pretrained(done, weights="raw")
    assert (ema.weights, raw.weights, ema.step, ema.preset) == ("ema", "raw", 2, "umd")
    assert ema.digest != raw.digest
    assert ema.digest == from_pretrained(done).digest
    assert ema.spec.num_classes == 10
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_an_export_gives_back_the_network_bit_for_bit(done, exported):
    source, again = from_pretrained(done), from_pretrained(exported)
    assert again.digest == source.digest
    for theirs, ours in zip(leaves(source.model), leaves(again.model), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    assert jax.tree.structure(again.model) == jax.tree.structure(source.model)
    kept = ("config", "path", "spec", "preset", "step", "weights")
    assert [getattr(again, name) for name in kept] == [getattr(source, name) for name in kept]
    assert again.data == source.data.moved(None)
    assert again.describe() == source.describe()
    assert from_pretrained(exported.parent).digest == source.digest  # the folder will do


def test_a_run_and_its_export_say_whether_the_network_saw_noise(done, exported, tmp_path):
    assert from_pretrained(done).denoises is True
    assert from_pretrained(exported).denoises is True
    # The objective is read from config.json; one of a reader's own is not known.
    shutil.copytree(done, tmp_path / "run")
    config = json.loads((done / "config.json").read_text())
    for objective, expected in (
        (dump(masked_reconstruction()), False),
        ({"type": "Mine"}, None),
        (None, None),
        (3, None),
    ):
        changed = config | {"config": config["config"] | {"objective": objective}}
        (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
        source = from_pretrained(tmp_path / "run")
        assert source.denoises is expected
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        export(source, place)
        assert from_pretrained(place).denoises is expected
    # Exports from before it was said.
    card = json.loads(place.with_suffix(".json").read_text())
    del card["denoises"]
    place.with_suffix(".json").write_text(json.dumps(card))
    assert from_pretrained(place).denoises is None
    place.with_suffix(".json").write_text(json.dumps(card | {"denoises": "yes"}))
    with pytest.raises(BadInput, match="cannot be read"):
        from_pretrained(place)


def test_half_precision_is_half_the_size_and_near(done, tmp_path):
    source = from_pretrained(done)
    export(source, tmp_path / "half.safetensors", half=True)
    export(source, tmp_path / "whole.safetensors")
    again = from_pretrained(tmp_path / "half.safetensors")
    for theirs, ours in zip(leaves(source.model), leaves(again.model), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-6)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.55 * sizes[1]


def test_the_card_says_nothing_of_the_machine(exported, done):
    card = exported.with_suffix(".json").read_text()
    assert str(done.parent) not in card
    assert json.loads(card)["data"]["source"]["dir"] is None


def test_an_export_is_not_written_over(done, exported):
    with pytest.raises(BadInput, match=r"out: .* already exists"):
        export(from_pretrained(done), exported)
    with pytest.raises(BadInput, match=r"out: .*does not end in \.safetensors"):
        export(from_pretrained(done), exported.with_suffix(".pt"))


def test_what_is_no_network_is_refused_in_a_line(tmp_path, done):
    with pytest.raises(BadInput, match=r"run: there is no .*nowhere"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="neither a run nor an export"):
        from_pretrained(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((done / "config.json").read_text())
    with pytest.raises(BadInput, match=r"has not started \(environment.json is missing\)"):
        from_pretrained(tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text((done / "environment.json").read_text())
    with pytest.raises(BadInput, match="has no checkpoint yet"):
        from_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def copy(exported, folder):
    path = folder / "copy.safetensors"
    path.write_bytes(exported.read_bytes())
    path.with_suffix(".json").write_text(exported.with_suffix(".json").read_text())
    return path


def test_a_file_that_its_card_does_not_describe_is_refused(exported, tmp_path):
    path = copy(exported, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    tensors, _ = read_tensors(path)
    name, first = next(iter(tensors.items()))
    write_tensors(path, tensors | {name: first + 1})
    with pytest.raises(BadInput, match="is not the file that its card describes"):
        from_pretrained(path)
    path.with_suffix(".json").write_text(json.dumps(card | {"format": 2}))
    with pytest.raises(BadInput, match="newer version"):
        from_pretrained(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(BadInput, match=r"has no card beside it. Put copy.json into the same folder"):
        from_pretrained(path)


@pytest.mark.parametrize("source", [3, None, [], {"type": "DataSpec"}, {"type": "ImageFolder", "dir": 3}])
def test_a_card_whose_data_have_no_source_is_refused(exported, tmp_path, source):
    path = copy(exported, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    card["data"]["source"] = source
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(BadInput) as error:
        from_pretrained(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_card_from_before_there_were_sources_is_read(exported, tmp_path):
    path = copy(exported, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    card["data"] |= {name: value for name, value in card["data"].pop("source").items() if name != "type"}
    assert {"name", "dir"} <= card["data"].keys()
    path.with_suffix(".json").write_text(json.dumps(card))
    assert from_pretrained(path).data == from_pretrained(exported).data


@pytest.mark.parametrize("what", ["lacks", "unexpected array", "of shape", "not finite"])
def test_tensors_that_do_not_fit_the_network_are_named(exported, tmp_path, what):
    path = copy(exported, tmp_path)
    tensors, _ = read_tensors(path)
    if what == "lacks":
        del tensors["mask_token"]
    elif what == "unexpected array":
        tensors["mask_token2"] = tensors["mask_token"]
    elif what == "of shape":
        tensors["mask_token"] = tensors["mask_token"][:3]
    else:
        tensors["mask_token"] = np.full_like(tensors["mask_token"], np.nan)
    write_tensors(path, tensors)
    card = json.loads(path.with_suffix(".json").read_text())
    card["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match=what) as error:
        from_pretrained(path)
    assert "mask_token" in str(error.value)


def test_a_pickle_is_not_loaded(exported, tmp_path):
    path, mark = copy(exported, tmp_path), tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (mark.touch, ())

    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(BadInput, match="is not a readable safetensors file"):
        from_pretrained(path)
    assert not mark.exists()


def test_small_weights_come_with_the_package():
    assert sum(path.stat().st_size for path in SHIPPED.parent.iterdir()) < 10e6
    shipped = from_pretrained()
    assert shipped.model.num_classes == 10
    assert (shipped.preset, shipped.weights) == ("umd-ft", "ema")
