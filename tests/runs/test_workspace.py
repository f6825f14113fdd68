"""The directory of a run."""

import dataclasses
import json
import multiprocessing
import os

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.data.source_configs import TFDS
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.runs.lock import locked
from umd_eqx.runs.workspace import MAX_NAME_LENGTH, claim, default_run_dir, environment, record
from umd_eqx.training.optimisers import Muon

UMD = PRETRAIN["umd"]()


def replaced(config, **fields):
    for name, value in fields.items():
        room, field = name.split("__")
        config = dataclasses.replace(config, **{room: dataclasses.replace(getattr(config, room), **{field: value})})
    return config


def test_the_directory_has_the_name_of_the_preset_and_of_what_was_changed():
    assert str(default_run_dir("umd", UMD, UMD)) == "runs/umd"
    changed = replaced(UMD, optim__lr=3e-4, model__variant="mu/7")
    assert str(default_run_dir("umd", changed, UMD)) == "runs/umd,model.variant=mu-7,optim.lr=0.0003"
    changed = replaced(UMD, data__train_split="train[:99%]")
    assert str(default_run_dir("umd", changed, UMD)) == "runs/umd,data.train_split=train-99"


def test_of_another_type_only_what_is_not_its_default_is_in_the_name():
    recipe = UMD.optim
    muon = Muon(recipe.lr, recipe.lr_batch_size, recipe.epochs, recipe.steps, recipe.warmup)
    names = []
    for optim in (muon, dataclasses.replace(muon, lr=Muon().lr), dataclasses.replace(muon, rms=None)):
        names.append(default_run_dir("umd", dataclasses.replace(UMD, optim=optim), UMD).name)
    assert names == ["umd,optim=Muon", "umd,optim=Muon,optim.lr=0.00015", "umd,optim=Muon,optim.rms=None"]


def test_what_makes_no_other_run_makes_no_other_directory():
    changed = replaced(UMD, log__every=1, checkpoint__keep=9, data__source=TFDS(dir="/data"), data__eval_batch_size=8)
    assert default_run_dir("umd", changed, UMD) == default_run_dir("umd", UMD, UMD)


def test_a_long_name_is_cut_and_two_of_them_stay_apart():
    long = {"optim__lr": 1e-5, "optim__beta1": 0.123, "optim__beta2": 0.456, "optim__clip": 7.5}
    long |= {"model__variant": "mu/7"}
    names = [
        default_run_dir("umd", replaced(UMD, **long, optim__weight_decay=decay), UMD).name for decay in (0.25, 0.125)
    ]
    assert names[0] != names[1]
    assert all(len(name) <= MAX_NAME_LENGTH + 9 for name in names)
    assert all(name.startswith("umd,model.variant=mu-7,optim.beta1=0.123") for name in names)


def hold(directory, ready, done):
    with locked(directory):
        ready.set()
        done.wait(60)
        os._exit(1)  # as a killed process: nothing is cleaned up


def test_a_directory_has_one_owner_and_is_free_when_its_process_is_gone(tmp_path):
    # Spawned and not forked: jax has threads. It imports the package once more, and nothing else.
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready, done))
    process.start()
    assert ready.wait(60)
    with pytest.raises(BadInput, match="another process is running in") as error, locked(tmp_path / "run"):
        pass
    assert error.value.field == "run_dir"
    done.set()
    process.join(60)
    with locked(tmp_path / "run"):
        pass


def test_a_directory_is_made_with_its_parents_and_can_be_owned_again(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "a/b/run"):
            assert (tmp_path / "a/b/run").is_dir()


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(BadInput, match="cannot be written to"), locked(place):
            pass


def test_a_claim_is_kept_and_told_apart_from_another_run(tmp_path):
    assert claim(tmp_path, UMD, "umd") is None
    record(tmp_path, UMD, "umd", UMD)
    often = replaced(UMD, log__every=1)
    assert claim(tmp_path, often, "umd") == json.loads((tmp_path / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["config"]["log"]["every"] == 50  # checked, not written
    record(tmp_path, often, "umd", UMD)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert (kept["preset"], kept["overrides"]) == ("umd", {"log.every": 1})
    assert kept["config"]["log"]["every"] == 1
    with pytest.raises(BadInput, match=r"was started with 0.001, and now it is 0.1") as error:
        claim(tmp_path, replaced(UMD, optim__lr=0.1), "umd")
    assert error.value.field == "optim.lr"
    assert json.loads((tmp_path / "config.json").read_text()) == kept


def test_a_field_that_a_run_was_begun_without_is_compared_with_its_default(tmp_path):
    record(tmp_path, UMD, "umd", UMD)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["config"]["model"]["registers"], content["config"]["model"]["block"]
    save_json(tmp_path / "config.json", content)
    assert claim(tmp_path, UMD, "umd") == content
    with pytest.raises(BadInput, match="registers"):
        claim(tmp_path, replaced(UMD, model__registers=4), "umd")


def test_another_preset_is_another_run(tmp_path):
    record(tmp_path, UMD, "umd", UMD)
    with pytest.raises(BadInput, match="was started with umd, and now it is dit") as error:
        claim(tmp_path, PRETRAIN["dit"](), "dit")
    assert error.value.field == "preset"


def test_the_environment_says_what_a_reader_needs(tmp_path):
    facts = environment("umd", {"steps": 3})
    assert facts["preset"] == "umd"
    assert facts["steps"] == 3
    assert facts["devices"] == 8
    assert facts["command"].startswith("python ")
    assert {"umd_eqx", "jax", "equinox", "orbax-checkpoint"} <= facts["packages"].keys()
    save_json(tmp_path / "environment.json", facts)
    assert json.loads((tmp_path / "environment.json").read_text()) == facts
