"""Denoising at each level, by networks whose error is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake, Source, context, noise, pixels
from oracle import GaussianOracle

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosinePath
from umd_eqx.core.predictions import X0EpsPrediction
from umd_eqx.eval import Denoising
from umd_eqx.eval.denoising import level_name
from umd_eqx.eval.pictures import GAP
from umd_eqx.objectives import Unified, denoising, masked_denoising, masked_reconstruction, unified

KEY = jax.random.key(5)
MAE = masked_reconstruction()
SOURCE = noise(40)
LEVELS = Denoising(levels=(0.1, 0.5, 0.9), shown_levels=(0.1, 0.9), images=40, pictures=3)


def scalars(evaluator: Denoising = LEVELS, model=None, source: Source = SOURCE, **how) -> dict[str, float]:
    return dict(evaluator.build(context(source, source, **how))(Fake() if model is None else model, KEY).scalars)


def test_a_network_that_says_zero_has_the_mean_squares():
    found = scalars()
    assert found.keys() == {f"{head}/t{level:.2f}" for head in ("x0", "eps") for level in LEVELS.levels}
    for level in LEVELS.levels:
        assert found[f"x0/t{level:.2f}"] == pytest.approx(np.mean(pixels(SOURCE) ** 2), rel=1e-5)
        # 2560 squares of standard normal numbers: their mean is 1 to within 2.8 %, one standard deviation.
        assert found[f"eps/t{level:.2f}"] == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(
    ("objective", "learned"),
    [(unified(), False), (masked_denoising(), False), (denoising(), True), (Unified(denoising(), MAE, 0.05), True)],
)
def test_x0_is_measured_only_where_it_is_learned_on_visible_patches(objective, learned):
    # UMD's x0 head learns hidden patches only; here every patch is visible.
    heads = ("x0", "eps") if learned else ("eps",)
    given = dataclasses.replace(context(SOURCE, SOURCE), objective=objective)
    found = dict(LEVELS.build(given)(Fake(), KEY).scalars)
    assert found == {name: number for name, number in scalars().items() if name.startswith(heads)}
    assert len(found) == len(heads) * len(LEVELS.levels)


def test_a_network_that_gives_back_what_it_sees_is_right_where_there_is_no_noise():
    low, middle, high = (scalars(model=Fake(copied=1.0))[f"x0/t{level:.2f}"] for level in LEVELS.levels)
    assert low < 0.1 < middle < high


def test_the_best_network_has_the_error_that_theory_says():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, 16)) * 0.05
    covariance = jnp.asarray(mixing @ mixing.T + 0.01 * np.eye(16), jnp.float32)
    path = CosinePath()
    oracle = GaussianOracle(path, jnp.full((4, 4, 1), 0.1), covariance)
    images = np.clip((np.asarray(oracle.sample(jax.random.key(0), 600)) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    source = Source(images, np.zeros(600, int))
    evaluator = dataclasses.replace(LEVELS, images=600)
    found = scalars(evaluator, oracle, source, batch_size=200, path=path)
    for level in LEVELS.levels:
        theory = oracle.errors(jnp.asarray(level))
        assert found[f"x0/t{level:.2f}"] == pytest.approx(float(theory.x0.mean()), rel=0.08)
        assert found[f"eps/t{level:.2f}"] == pytest.approx(float(theory.eps.mean()), rel=0.08)


def test_no_number_depends_on_how_images_are_batched():
    source = noise(37)
    first, *others = (scalars(source=source, batch_size=b, devices=d) for b, d in ((8, 8), (40, 8), (7, 1)))
    for other in others:
        assert other == pytest.approx(first, rel=1e-6)


def test_an_image_that_cannot_be_read_is_left_out():
    black = Source(np.zeros((40, 8, 8, 1), np.uint8), np.zeros(40, int))
    black.images[[3, 4]] = 128
    assert scalars(source=black)["x0/t0.50"] == pytest.approx(38 / 40, rel=1e-3)
    black.broken = (3, 4)
    assert scalars(source=black)["x0/t0.50"] == pytest.approx(1.0)


def test_a_network_that_knows_labels_is_given_those_of_the_images():
    class Told(Fake):
        """Predicts the label that it is told, as the noise."""

        def __call__(self, x, cond, view=None, *, key=None) -> X0EpsPrediction:
            return X0EpsPrediction(jnp.zeros_like(x), jnp.full_like(x, cond.y))

    # E (label - eps)^2 over standard normal noise, in batches whose last is filled up. NO_CLASS = -1 would make it 2.
    labels = np.arange(10) % 4
    source = Source(noise(10).images, labels)
    found = scalars(dataclasses.replace(LEVELS, images=10), Told(num_classes=4), source, batch_size=8)
    for level in LEVELS.levels:
        assert found[f"eps/t{level:.2f}"] == pytest.approx(1.0 + np.mean(labels**2.0), rel=0.15)


def test_each_level_has_noise_of_its_own_and_the_key_alone_decides_it():
    found = scalars()
    assert len({found[f"eps/t{level:.2f}"] for level in LEVELS.levels}) == 3
    assert scalars() == found
    evaluate = LEVELS.build(context(SOURCE, SOURCE))
    assert evaluate(Fake(), jax.random.key(6)).scalars["eps/t0.10"] != found["eps/t0.10"]


@pytest.mark.parametrize(
    ("level", "name"),
    [(0.05, "t0.05"), (0.1, "t0.10"), (0.5, "t0.50"), (0.051, "t0.051"), (0.052, "t0.052"), (1e-5, "t0.00001")],
)
def test_a_level_has_two_decimals_or_as_many_as_it_needs(level, name):
    assert level_name(level) == name


def test_levels_that_are_close_have_numbers_of_their_own():
    levels = (0.05, 0.051, 0.052)
    found = scalars(Denoising(levels=levels, shown_levels=levels[:1], images=8))
    assert found.keys() == {f"{head}/t{level}" for head in ("x0", "eps") for level in levels}


def test_the_picture_shows_images_that_were_read_and_nothing_else():
    # In batches of 8; the first has two that can be read, and three are to be shown.
    source = Source(SOURCE.images, SOURCE._labels, broken=(0, 1, 2, 4, 5, 6, 8))
    picture = LEVELS.build(context(source, source, batch_size=8))(Fake(), KEY).images["pictures"]
    assert picture.shape == (3 * 8 + 2 * GAP, 5 * 8 + 4 * GAP, 3)
    for row, index in enumerate((3, 7, 9)):
        np.testing.assert_array_equal(picture[(8 + GAP) * row :][:8, :8, 0], SOURCE.images[index, ..., 0])
    few = dataclasses.replace(LEVELS, images=2).build(context(SOURCE, SOURCE, batch_size=8))
    assert few(Fake(), KEY).images["pictures"].shape == (2 * 8 + GAP, 5 * 8 + 4 * GAP, 3)


def test_where_no_image_can_be_read_there_is_no_number_and_no_picture():
    source = Source(SOURCE.images, SOURCE._labels, broken=range(40))
    report = LEVELS.build(context(source, source))(Fake(), KEY)
    assert np.isnan(list(report.scalars.values())).all()
    assert report.images == {}


def test_the_picture_shows_the_image_and_each_level_with_its_prediction():
    picture = LEVELS.build(context(SOURCE, SOURCE))(Fake(copied=0.0), KEY).images["pictures"]
    assert picture.shape == (3 * 8 + 2 * GAP, 5 * 8 + 4 * GAP, 3)
    assert picture.dtype == np.uint8
    for row in range(3):
        image, little, guess, much, other_guess = (
            picture[(8 + GAP) * row :][:8, (8 + GAP) * column :][:, :8, 0].astype(float) for column in range(5)
        )
        source = SOURCE.images[row, ..., 0]
        np.testing.assert_array_equal(image, source)
        assert np.corrcoef(image.ravel(), little.ravel())[0, 1] > 0.8
        assert np.corrcoef(image.ravel(), much.ravel())[0, 1] < 0.6
        # Who sees no noise leaves the image as it is, but for its scale.
        assert np.corrcoef(little.ravel(), guess.ravel())[0, 1] > 0.9
        assert np.corrcoef(much.ravel(), other_guess.ravel())[0, 1] > 0.6


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"images": 0}, "images"),
        ({"pictures": 0}, "pictures"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.1, 0.9, 1.0)}, "levels"),
        ({"levels": (0.0, 0.1, 0.9)}, "levels"),
        ({"levels": (0.1, 0.1, 0.9)}, "levels"),
        ({"shown_levels": (0.3,)}, "shown_levels"),
    ],
)
def test_what_cannot_work_is_refused_before_training(fields, field):
    with pytest.raises(BadInput) as refused:
        dataclasses.replace(LEVELS, **fields).build(context(SOURCE, SOURCE))
    assert refused.value.field == f"eval.denoising.{field}"
    (value,) = fields.values()
    assert str(refused.value).startswith(f"eval.denoising.{field}: {value} is not valid. ")
