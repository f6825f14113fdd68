"""Fine-tuning a reader's own runs: the recipe that is derived, and the way from pre-training to sampling."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from data.tiny_sets import encode, image_features, picture, write
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import on_one_device, rows, tiny

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.finetune import finetune
from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import RectifiedFlow
from umd_eqx.data.source_configs import TFDS
from umd_eqx.eval import FewShot
from umd_eqx.objectives import (
    AbstractObjective,
    MeanFlow,
    PatchNoise,
    Unified,
    denoising,
    masked_denoising,
    masked_reconstruction,
    unified,
)
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Start
from umd_eqx.recipes.dump import dump
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN, PUBLISHED_NOISY_TIME
from umd_eqx.runs.derived import derived_recipe
from umd_eqx.runs.finetuning import follow, resolve_fitting, start_from
from umd_eqx.runs.pretrained import Pretrained, export, from_pretrained
from umd_eqx.runs.run import run
from umd_eqx.sampling import DDIM
from umd_eqx.training.optimisers import AdamW


@pytest.fixture(autouse=True)
def one_device_everywhere(monkeypatch):
    on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Colour photographs of different sizes, of three classes."""
    root = tmp_path_factory.mktemp("photos")
    records = [{"image": encode(picture(i, 14 + i % 5, 17 - i % 3, 3)), "label": i % 3} for i in range(48)]
    write(root, {"train": records, "test": records[:16]}, image_features((None, None, None), classes=3))
    return root


@dataclasses.dataclass(frozen=True)
class Mine:
    """Stands for a reader's own objective: it is in no closed list."""

    strength: float = 0.5


def own_recipe(photos, objective):
    """Another data set, size, number of channels, network, path and length than any preset has."""
    source = TFDS("tiny", str(photos))
    data = {"source": source, "size": 16, "area_min": 60.0, "flip": True, "expected": None}
    config = tiny(
        **{f"data__{name}": value for name, value in data.items()},
        **{"model__variant": "mu/4", "model__class_tokens": 2, "model__conditioning": "shared-adaln"},
        **{"eval": {"fewshot": FewShot(every=4, shots=3, seeds=1, knn=2)}, "objective": objective},
        **{"path": RectifiedFlow(), "optim__lr": 2e-3},
    )
    return config


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    """The run of a reader's own recipe."""
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        directory = tmp_path_factory.mktemp("source") / "photos"
        run(own_recipe(photos, unified()), run_dir=directory, preset="umd-photos", limit_steps=2)
    return directory


def recorded_as(source, directory, preset, objective):
    """The same run, as if it had been trained otherwise."""
    shutil.copytree(source, directory)
    kept = json.loads((directory / "config.json").read_text())
    kept |= {"preset": preset, "config": kept["config"] | {"objective": dump(objective)}}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def test_data_network_and_path_are_the_runs_and_the_changes_are_the_published_ones(source, photos):
    name, config = follow(FINETUNE, None, *start_from(source, "ema"))
    there = own_recipe(photos, unified())
    assert name == "umd-photos-ft"
    assert config.model == dataclasses.replace(there.model, labels=True)
    assert config.path == there.path
    assert config.data == dataclasses.replace(there.data, area_min=95.0, batch_size=16, content=config.data.content)
    assert config.objective == Unified(denoising(), masked_reconstruction(), no_noise_prob=1 / 16)
    changes = {"steps": 18, "warmup": 0.05, "beta2": 0.999, "weight_decay": 0.0}
    assert config.optim == dataclasses.replace(there.optim, **changes)
    assert config.eval["fewshot"] == dataclasses.replace(there.eval["fewshot"], every=18)
    assert config.eval["generation"].sampler.clip
    resolve_fitting(config, from_pretrained(source))


def test_a_run_of_ones_own_is_fine_tuned_by_the_plain_command(source, capsys):
    cheap = ("--limit-steps", "1", "--log.every", "1", "--eval.generation.samples", "10")
    cheap += ("--eval.generation.sampler.steps", "2", "--eval.generation.cfg-scales", "1")
    cheap += ("--eval.denoising.images", "8", "--eval.reconstruction.images", "8", "--eval.generation.columns", "1")
    with pytest.raises(SystemExit) as end:
        exit_with(finetune, ["--from", str(source), *cheap])
    assert end.value.code == 0, capsys.readouterr().err
    directory = source.parent / "photos-ft"
    assert np.isfinite(rows(directory)[-1]["train/loss"])
    tuned = from_pretrained(directory)
    assert (tuned.preset, tuned.model.num_classes) == ("umd-photos-ft", 3)
    assert tuned.model.image_shape == (16, 16, 3)
    # ... and what was fine-tuned can be fine-tuned again.
    name, config = follow(FINETUNE, None, *start_from(directory, "ema"))
    resolve_fitting(config, tuned)
    assert name == "umd-photos-ft"


def test_an_objective_of_ones_own_is_fine_tuned_as_one_that_saw_clean_images(source, tmp_path):
    directory = recorded_as(source, tmp_path / "run", "umd-photos", Mine())
    _, config = follow(FINETUNE, None, *start_from(directory, "raw"))
    assert isinstance(config.objective, Unified)
    resolve_fitting(config, from_pretrained(directory, weights="raw"))


def test_a_preset_without_a_published_recipe_is_followed_too(source, tmp_path):
    assert {"latent-dit", "latent-dit-ft"} & {*PRETRAIN, *FINETUNE} == {"latent-dit"}
    directory = recorded_as(source, tmp_path / "run", "latent-dit", denoising())
    name, recipe = follow(FINETUNE, None, *start_from(directory, "ema"))
    assert (name, recipe.objective) == ("latent-dit-ft", denoising())


@pytest.mark.parametrize(
    ("objective", "clean"),
    [
        (unified(), True),
        (masked_reconstruction(), True),
        (denoising(), False),
        (masked_denoising(), False),
        (unified(no_noise_prob=0.0), False),
        (PatchNoise(), False),
        (MeanFlow(), False),
    ],
)
def test_only_a_network_that_has_seen_clean_images_goes_on_reconstructing_them(source, objective, clean):
    assert objective.sees_clean_images == clean
    theirs = from_pretrained(source)
    config = derived_recipe(theirs, {**theirs.trained, "objective": dump(objective)})
    assert isinstance(config.objective, Unified) == clean
    assert ("reconstruction" in config.eval) == clean
    assert config.eval["fewshot"].time == (0.0 if clean else PUBLISHED_NOISY_TIME)


def trained_by(config, preset):
    """What a run of a recipe for pixels leaves behind, in shapes alone."""
    spec = config.data.expected
    described = (build(config, spec).abstract_state().model, config.model, config.path, config.data, spec, preset)
    return Pretrained(*described, step=1, weights="ema", trained=dump(config))


def small_network(preset, **fields):
    config = PRETRAIN[preset]()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, variant="mu/7", **fields))


GENERATORS = [name for name in PRETRAIN if "generation" in PRETRAIN[name]().eval and PRETRAIN[name]().tokenizer is None]
START = Start("runs/source", "ema", "0")


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_fine_tuned_as_one_that_never_saw_clean_images_or_not_at_all(name):
    source = trained_by(small_network(name), name)
    if name == "mean-flow":
        with pytest.raises(
            BadInput, match=r"^from: there is no fine-tuning recipe for a network of average velocities"
        ):
            follow(FINETUNE, None, START, source)
        return
    _, config = follow(FINETUNE, None, START, source)
    assert config.objective == denoising()
    assert build(config, source.spec).step_flops() > 0  # the loss can be traced


def test_a_recipe_that_is_named_may_continue_average_velocities():
    source = trained_by(small_network("mean-flow"), "mean-flow")
    assert follow(PRETRAIN, "mean-flow", START, source)[1].objective == PRETRAIN["mean-flow"]().objective


def test_a_network_of_v_is_never_trained_on_clean_images_whatever_its_objective():
    source = trained_by(small_network("dit", prediction="v"), "mine")
    source = dataclasses.replace(source, trained={**source.trained, "objective": dump(Mine())})
    _, config = follow(FINETUNE, None, START, source)
    assert config.objective == denoising()
    assert build(config, source.spec).step_flops() > 0


class Noised(AbstractObjective):
    """A reader's own objective that says what it sees."""

    sees_clean_images = False

    def draw(self, key, model, path, shape):
        raise NotImplementedError

    def loss(self, model, path, batch, draw):
        raise NotImplementedError

    def period(self, batch_size):
        return 1

    def validate(self, num_patches, batch_size):
        pass


def test_an_objective_of_ones_own_is_asked_what_it_saw():
    source = trained_by(small_network("x-prediction"), "mine")
    source = dataclasses.replace(source, trained={**source.trained, "objective": dump(Noised())})
    assert isinstance(follow(FINETUNE, None, START, source)[1].objective, Unified)  # its class is not given
    assert follow(FINETUNE, None, START, source, [Noised])[1].objective == denoising()


def test_a_schedule_in_epochs_is_shortened_as_the_published_one(source):
    theirs = from_pretrained(source)
    long = dump(AdamW(lr=1.5e-4, epochs=800.0, mu_dtype="bfloat16", accumulate=2))
    config = derived_recipe(theirs, {**theirs.trained, "optim": long})
    assert (config.optim.epochs, config.optim.steps, config.optim.lr_batch_size) == (50.0, None, 256)
    assert (config.optim.accumulate, config.data.batch_size) == (2, 32)
    assert config.objective.period(config.data.batch_size) == 16
    assert config.ema.rate_for(256, labels=True) == pytest.approx(1e-4)
    assert (config.eval["generation"].sampler, config.eval["generation"].samples) == (DDIM(), 10_240)


def test_an_export_does_not_say_how_it_was_trained(source, tmp_path):
    path = tmp_path / "mine.safetensors"
    export(from_pretrained(source), path)
    with pytest.raises(
        BadInput, match=r"there is no recipe 'umd-photos-ft' .*Pass the run that they were exported from"
    ):
        follow(FINETUNE, None, *start_from(path, "ema"))
