"""What is built of a configuration."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import DataSpec, LatentSpec
from umd_eqx.data.source import BrokenImage, TfdsSource
from umd_eqx.eval import Denoising, FewShot, Generation, Reconstruction
from umd_eqx.objectives import masked_reconstruction, unified
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config, DataConfig
from umd_eqx.recipes.dump import completed, differences, dump, load, run_identity
from umd_eqx.recipes.pretrain import umd
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.optimisers import AdamW

SPEC = DataSpec("fashion_mnist", 60_000, 10_000, 28, 28, 1, 10)


def small(**fields) -> Config:
    config = umd()
    model = dataclasses.replace(config.model, variant="mu/7")
    data = dataclasses.replace(config.data, eval_batch_size=8, batch_size=8)
    return dataclasses.replace(config, **({"model": model, "data": data} | fields))


def test_the_state_is_a_function_of_the_seed():
    first, again, other = (build(small(seed=seed), SPEC).init() for seed in (0, 0, 1))
    assert eqx.tree_equal(first, again)
    assert not np.array_equal(first.model.embed.kernel, other.model.embed.kernel)
    assert int(first.step) == int(first.skipped) == 0


def test_the_shapes_of_the_state_are_those_of_the_state():
    built = build(small(), SPEC)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), built.abstract_state())
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), built.init())


@pytest.mark.parametrize(
    ("labels", "only_with_labels", "averaged"), [(False, True, False), (True, True, True), (False, False, True)]
)
def test_an_average_is_kept_where_it_is_asked_for(labels, only_with_labels, averaged):
    model = dataclasses.replace(small().model, labels=labels)
    built = build(small(model=model, ema=EmaConfig(only_with_labels=only_with_labels)), SPEC)
    assert (built.abstract_state().ema is not None) == averaged
    assert (built.parts.ema_rate is not None) == averaged
    assert (built.abstract_state().model.num_classes == 10) == labels


def test_the_length_of_a_run_is_given_in_steps_or_in_epochs():
    steps = build(small(optim=AdamW(steps=100, warmup=0.1)), SPEC)
    assert (steps.warmup, steps.total) == (10, 100)
    epochs = build(small(optim=AdamW(epochs=2, warmup=0.5)), SPEC)
    assert (epochs.warmup, epochs.total) == (7_500, 15_000)
    assert epochs.parts.schedule(7_500) == pytest.approx(1.5e-4 * 8 / 256)


@pytest.mark.parametrize("optim", [AdamW(), AdamW(steps=1, epochs=1.0)])
def test_a_length_that_is_given_not_at_all_or_twice_is_refused(optim):
    with pytest.raises(BadInput, match="give either epochs or steps"):
        build(small(optim=optim), SPEC)


def test_so_few_epochs_that_there_is_no_step_are_refused():
    with pytest.raises(BadInput, match="are less than one step") as error:
        build(small(optim=AdamW(epochs=1e-6)), SPEC)
    assert error.value.field == "optim.epochs"


def test_what_must_divide_over_the_devices_is_judged_by_the_mesh_that_is_there():
    config = small(data=dataclasses.replace(small().data, batch_size=12, eval_batch_size=12))
    build(config, SPEC, make_mesh(jax.devices()[:4]))
    with pytest.raises(BadInput, match=r"12 does not divide over 8 devices\. Use 16") as error:
        build(config, SPEC)
    assert error.value.field == "data.eval_batch_size"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_of_32_bits_is_taken(seed):
    assert build(small(seed=seed), SPEC).parts.seed == seed


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_no_other_seed_is_taken(seed):
    with pytest.raises(BadInput) as error:
        build(small(seed=seed), SPEC)
    assert error.value.field == "seed"


def test_the_data_are_described_and_opened_as_configured():
    data = DataConfig(train_split="train[:100]", test_split="test[50:60]", max_broken=3, size=28)
    assert data.describe() == DataSpec("fashion_mnist", 100, 10, 28, 28, 1, 10)
    train, test = data.open()
    assert (len(train), len(test)) == (100, 10)
    assert train.broken == test.broken == set()
    image = data.transform()(train[0]["image"], np.random.default_rng(0))
    assert (image.shape, image.dtype) == ((28, 28, 1), np.float32)


def test_broken_images_are_counted_in_both_splits_up_to_the_same_number(monkeypatch):
    def read(source: TfdsSource, index: int):
        if index < 3:
            raise BrokenImage(index, "cut short")
        return {"image": np.full((28, 28, 1), index, np.uint8), "label": 0}

    monkeypatch.setattr(TfdsSource, "__getitem__", read)
    train, test = DataConfig(train_split="train[:9]", test_split="test[:8]", max_broken=2).open()
    assert train[2]["image"][0, 0, 0] == 3  # the next one stands in
    assert train.broken == {2}
    for index in (0, 1):
        with pytest.raises(BrokenImage):
            test[index]
    assert test.broken == {0, 1}
    with pytest.raises(BadInput, match=r"3 broken images, more than 2, in test\[:8\]") as error:
        test[2]
    assert error.value.field == "data.max_broken"


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_thread_is_refused(workers):
    with pytest.raises(BadInput, match=f"{workers} is too small") as error:
        build(small(data=dataclasses.replace(small().data, workers=workers)), SPEC)
    assert error.value.field == "data.workers"


def test_who_reads_the_images_is_no_part_of_the_run():
    for fields in ({"workers": 7}, {"worker_kind": "processes"}):
        assert run_identity(small(data=dataclasses.replace(small().data, **fields))) == run_identity(small())


def test_how_images_are_decoded_is_part_of_the_run_and_is_that_of_its_transform():
    fast = dataclasses.replace(small().data, decode="fast")
    was, now = run_identity(small()), run_identity(small(data=fast))
    assert differences(was, now) == {"data.decode": ("exact", "fast")}
    assert (small().data.transform().decode, fast.transform().decode) == ("exact", "fast")


def test_a_run_from_before_there_was_a_choice_decodes_exactly_on_threads():
    old = dump(small())
    assert {old["data"].pop("decode"), old["data"].pop("worker_kind")} == {"exact", "threads"}
    assert load(old) == small()
    assert load(completed(old)) == small()


def test_stored_latents_cannot_be_decoded_fast():
    data = dataclasses.replace(small().data, latents="latents", decode="fast")
    latent = LatentSpec(4, 4, "digest")
    with pytest.raises(BadInput, match="has no effect on latents") as error:
        build(small(data=data, tokenizer="fashion-kl", latent=latent), SPEC)
    assert error.value.field == "data.decode"


@pytest.mark.parametrize(
    ("evaluator", "field", "said"),
    [
        (FewShot(shots=0), "shots", "0 is not valid"),
        (Denoising(levels=(0.5, 1.5)), "levels", "(0.5, 1.5) is not valid"),
        (Reconstruction(images=-1), "images", "-1 is not valid"),
        (
            Reconstruction(mask_ratio=0.99),
            "mask_ratio",
            "0.99 is not valid. Use 0.0625, which hides one patch of 16, to",
        ),
    ],
)
def test_an_evaluation_that_cannot_work_is_named_as_it_is_in_the_configuration(evaluator, field, said):
    with pytest.raises(BadInput) as error:
        build(small(eval={"mine": evaluator}), SPEC)
    assert error.value.field == f"eval.mine.{field}"
    assert said in str(error.value)


def test_samples_of_what_never_saw_noise_are_refused():
    asked = {"samples": Generation()}
    for objective in (masked_reconstruction(), unified(no_noise_prob=1.0)):
        with pytest.raises(
            BadInput, match="the evaluator samples from noise, but the objective trains on clean images only"
        ) as error:
            build(small(objective=objective, eval=asked), SPEC)
        assert error.value.field == "eval.samples"
    build(small(eval=asked), SPEC)


def test_a_configuration_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        umd().seed = 1
