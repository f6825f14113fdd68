"""A run in pieces equals the run in one, and goes on only as the run that it was."""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import pytest
from faults.tiny import (
    STEPS,
    arrays,
    assert_equal_bit_for_bit,
    numbers,
    on_one_device,
    rows,
    tiny,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import (
    one_device as one_device,
)

from umd_eqx.core.errors import BadInput
from umd_eqx.data.source_configs import TFDS
from umd_eqx.objectives import masked_reconstruction
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import run
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import Muon
from umd_eqx.training.trainable import AllExcept

pytestmark = pytest.mark.usefixtures("one_device")


def unified() -> Config:
    """With an average of the weights, which is also what is evaluated, crops, flips and micro-batches."""
    config = tiny(data__area_min=80.0, data__flip=True, optim__accumulate=2, optim__mu_dtype="bfloat16")
    return dataclasses.replace(config, eval={"denoising": dataclasses.replace(config.eval["denoising"], weights="ema")})


def mae() -> Config:
    """Without an average."""
    return tiny(
        objective=masked_reconstruction(),
        model__conditioning="token",
        ema=EmaConfig(only_with_labels=True),
        eval={},
    )


def muon() -> Config:
    """With a state in two parts, of the matrices and of all else."""
    return tiny(optim=Muon(lr=1e-3, lr_batch_size=None, steps=STEPS, mu_dtype="bfloat16", adam_lr=5e-4), eval={})


def frozen() -> Config:
    """With an average, and a decoder that alone is trained."""
    return tiny(trainable=FROZEN, eval={})


FROZEN = AllExcept(("embed", "positions", "class_tokens", "condition", "encoder"))


@pytest.mark.parametrize(("recipe", "pieces"), [(unified, (1, 5)), (mae, (5,)), (frozen, (5,)), (muon, (5,))])
def test_a_run_in_pieces_equals_the_run_in_one(recipe, pieces, tmp_path):
    config = recipe()
    assert run(config, run_dir=tmp_path / "whole").step == STEPS
    for limit in pieces:
        outcome = run(config, run_dir=tmp_path / "pieces", limit_steps=limit)
        assert (outcome.step, outcome.exit_code) == (limit, 0)
    run(config, run_dir=tmp_path / "pieces")

    assert [row["step"] for row in rows(tmp_path / "pieces")] == list(range(1, STEPS + 1))
    # Each piece ends in an evaluation; the other numbers, and evaluations at the same step, are the same.
    for piece, whole in zip(numbers(tmp_path / "pieces"), numbers(tmp_path / "whole"), strict=True):
        assert {name: x for name, x in piece.items() if name in whole} == whole
        assert set(piece) - set(whole) == set() if piece["step"] not in pieces else True
    assert_equal_bit_for_bit(arrays(tmp_path / "pieces", config), arrays(tmp_path / "whole", config))
    kinds = [name for name in arrays(tmp_path / "whole", config) if name.startswith(".ema.")]
    assert bool(kinds) == (recipe is not mae)


def test_a_run_that_trains_a_part_leaves_the_rest_as_it_began(tmp_path):
    config = frozen()
    run(config, run_dir=tmp_path, limit_steps=3)
    built = build(config, config.data.describe())
    first = built.init().model
    for weights in ("raw", "ema"):
        model = from_pretrained(tmp_path, weights=weights).model
        trained, kept = (eqx.filter(model, FROZEN(model), inverse=inverse) for inverse in (False, True))
        assert eqx.tree_equal(kept, eqx.filter(first, FROZEN(first), inverse=True))
        assert not eqx.tree_equal(trained, eqx.filter(first, FROZEN(first)))


def test_a_name_of_no_parameter_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match=r"begins with 'encodre'\. Did you mean encoder\?") as error:
        run(tiny(trainable=AllExcept(("encodre",))), run_dir=tmp_path / "run")
    assert error.value.field == "trainable.frozen"
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, to be copied."""
    directory = tmp_path_factory.mktemp("begun") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(tiny(eval={}), run_dir=directory, limit_steps=2, preset="tiny")
    return directory


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"optim__lr": 0.5}, "optim.lr"),
        ({"optim__steps": 13}, "optim.steps"),
        ({"model__variant": "mu/4"}, "model.variant"),
        ({"model__class_tokens": 2}, "model.class_tokens"),
        ({"data__batch_size": 16}, "data.batch_size"),
        ({"data__flip": True}, "data.flip"),
        ({"data__train_split": "train[:50%]"}, "data.train_split"),
        ({"optim": Muon(steps=STEPS)}, "optim"),
        ({"seed": 1}, "seed"),
        ({"ema__rate": 0.5}, "ema.rate"),
        ({"trainable": AllExcept(("encoder",))}, "trainable.frozen.0"),
    ],
)
def test_what_makes_the_run_may_not_change(begun, changed, flag):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="was started with") as error:
        run(tiny(eval={}, **changed), run_dir=begun)
    assert error.value.field == flag
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_what_does_not_make_the_run_may_change(begun):
    config = tiny(
        log__every=2,
        checkpoint__every=1,
        checkpoint__keep=1,
        max_skipped=3,
        data__eval_batch_size=16,
        eval=tiny().eval,
        data__source=TFDS(dir=str(Path(__file__).parents[2] / "umd_eqx/data/embedded")),
    )
    assert run(config, run_dir=begun, limit_steps=4, preset="tiny").step == 4
    assert [row["step"] for row in rows(begun)] == [1, 2, 4]
    assert [path.name for path in (begun / "checkpoints").iterdir() if path.is_dir()] == ["4"]
    kept = json.loads((begun / "config.json").read_text())
    assert kept["preset"] == "tiny"
    assert kept["config"]["log"]["every"] == 2


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds 'thesis.tex', which is not part of a run") as error:
        run(tiny(), run_dir=tmp_path)
    assert error.value.field == "run_dir"
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    for text in ("", "[]", '{"preset": "umd"}', '"config"'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInput, match="cannot be read"):
            run(tiny(), run_dir=tmp_path)


def test_what_a_kill_left_of_an_unfinished_write_is_not_taken_for_somebody_elses(tmp_path):
    # write_atomically's own file, if the process is killed before it is put in place.
    (tmp_path / "config.json.4711.tmp").write_text("{")
    assert run(tiny(eval={}), run_dir=tmp_path, limit_steps=1).step == 1
