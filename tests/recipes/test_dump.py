"""A configuration as plain data and back."""

import dataclasses
import json

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath, CosineTable, LinearTable, RectifiedFlow, SmoothTable
from umd_eqx.data.source_configs import TFDS
from umd_eqx.eval import Denoising
from umd_eqx.recipes.classifier import CLASSIFIERS
from umd_eqx.recipes.config import Start
from umd_eqx.recipes.dump import (
    NON_IDENTITY_FIELDS,
    completed,
    differences,
    dump,
    flatten,
    identity_fields,
    load,
    run_identity,
)
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.training.trainable import AllExcept, Only


@pytest.mark.parametrize("name", [*PRETRAIN, *CLASSIFIERS])
def test_every_preset_comes_back_from_json(name):
    config = (PRETRAIN | CLASSIFIERS)[name]()
    text = json.dumps(dump(config))
    again = load(json.loads(text))
    assert again == config
    assert type(again.objective) is type(config.objective)
    assert json.dumps(dump(again)) == text


@pytest.mark.parametrize(
    "path", [CosineTable(), LinearTable(), CosinePath(), RectifiedFlow(), SmoothTable(LinearTable())]
)
def test_every_path_comes_back(path):
    config = dataclasses.replace(PRETRAIN["umd"](), path=path)
    assert load(json.loads(json.dumps(dump(config)))) == config


@pytest.mark.parametrize("trainable", [AllExcept(), AllExcept(("encoder", "embed.bias")), Only(("head",))])
def test_what_is_trained_comes_back_and_is_of_the_run(trainable):
    config = changed(trainable=trainable)
    assert load(json.loads(json.dumps(dump(config)))) == config
    assert bool(differences(run_identity(changed()), run_identity(config))) == (trainable != AllExcept())


def test_a_configuration_from_before_there_was_a_choice_trains_everything():
    data = dump(changed())
    del data["trainable"]
    assert load(data) == changed()
    assert identity_fields(flatten(completed(data))) == run_identity(changed())


def test_a_type_that_is_not_known_is_refused_and_nothing_is_imported():
    for name in ("Nothing", "os.system", "builtins.eval", "Parts", ["Config"], None):
        with pytest.raises(BadInput, match="is not a known type"):
            load({"type": name})
    data = dump(PRETRAIN["umd"]())
    data["objective"]["denoising"]["type"] = "Backdoor"
    with pytest.raises(BadInput, match="'Backdoor'") as error:
        load(data)
    assert "types=[...]" in str(error.value)


@dataclasses.dataclass(frozen=True)
class Mine:
    number: int = 1


def test_a_readers_own_types_may_be_passed():
    assert load(dump(Mine(3)), types=[Mine]) == Mine(3)


def test_a_field_that_a_type_does_not_have_or_lacks_is_refused():
    data = dump(PRETRAIN["umd"]())
    with pytest.raises(BadInput, match="another version of this program"):
        load(data | {"colour": "green"})
    del data["model"]
    with pytest.raises(BadInput, match="model"):
        load(data)


def test_what_is_no_plain_data_cannot_be_dumped():
    with pytest.raises(TypeError, match="cannot hold"):
        dump({"function": len})


def test_leaves_have_dotted_names():
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b.0": 1, "a.b.1.c": 2, "d": None}


def changed(**fields):
    config = PRETRAIN["umd"]()
    for name, value in fields.items():
        room, _, field = name.partition("__")
        new = dataclasses.replace(getattr(config, room), **{field: value}) if field else value
        config = dataclasses.replace(config, **{room: new})
    return config


@pytest.mark.parametrize(
    "fields",
    [
        {"log__every": 7},
        {"log__wandb": True},
        {"checkpoint__every": 7},
        {"checkpoint__keep": 7},
        {"max_skipped": 7},
        {"data__source": TFDS(dir="/elsewhere")},
        {"data__eval_batch_size": 8},
        {"data__expected": None},
        {"eval": {}},
        {"eval": {"denoising": Denoising(images=3)}},
    ],
)
def test_what_does_not_change_the_weights_is_not_of_the_run(fields):
    assert run_identity(changed(**fields)) == run_identity(changed())


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"data__flip": True}, "data.flip"),
        ({"data__area_min": 50.0}, "data.area_min"),
        ({"data__train_split": "train[:1%]"}, "data.train_split"),
        ({"data__batch_size": 64}, "data.batch_size"),
        ({"optim__mu_dtype": "bfloat16"}, "optim.mu_dtype"),
        ({"ema__rate": 0.5}, "ema.rate"),
        ({"model__dtype": "bfloat16"}, "model.dtype"),
        ({"objective__no_noise_prob": 0.25}, "objective.no_noise_prob"),
        ({"path": LinearTable()}, "path.type"),
    ],
)
def test_what_changes_the_weights_is_of_the_run(fields, name):
    was, now = run_identity(changed()), run_identity(changed(**fields))
    assert name in differences(was, now)
    assert differences(was, now)[name] == (was[name], now[name])


def test_only_whole_names_are_left_out():
    assert identity_fields(
        {"login": 1, "log.every": 2, "evaluate": 3, "data.source.directory": 4, "data.source.dir": 5}
    ) == {
        "login": 1,
        "evaluate": 3,
        "data.source.directory": 4,
    }
    for name in NON_IDENTITY_FIELDS:  # a field that was given another name would be part of the run again
        started = changed(start=Start("runs/umd", "raw", "0"))
        assert any(f"{leaf}.".startswith(f"{name}.") for leaf in flatten(dump(started)))


def test_a_name_that_is_on_one_side_only_is_a_difference():
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == {"a": (1, None), "c": (None, 3)}
