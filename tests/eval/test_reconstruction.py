"""Reconstruction of hidden patches, by networks whose error is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake, Source, context, noise, pixels
from oracle import GaussianOracle

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View, draw_order, hidden_pixels, num_kept, ratios
from umd_eqx.core.paths import CosineTable
from umd_eqx.eval import Reconstruction
from umd_eqx.eval.pictures import GAP

KEY = jax.random.key(5)
SOURCE = noise(40)
HIDDEN = Reconstruction(images=40, pictures=5)


def error(evaluator: Reconstruction = HIDDEN, model=None, **how) -> float:
    source = how.pop("source", SOURCE)
    report = evaluator.build(context(source, source, **how))(Fake() if model is None else model, KEY)
    assert report.scalars.keys() == {"error"}
    return report.scalars["error"]


def test_a_network_that_knows_every_pixel_has_no_error():
    assert error(model=Fake(copied=1.0)) == 0.0


def test_a_network_that_says_zero_has_the_mean_square_of_the_hidden_pixels():
    flat = Source(np.full((40, 8, 8, 1), 255, np.uint8), np.zeros(40, int))
    assert error(source=flat) == pytest.approx(1.0)
    # Random pixels: nearly the mean square of all, which differs by 1 % or so from image to image.
    assert error() == pytest.approx(np.mean(pixels(SOURCE) ** 2), rel=0.03)


def test_visible_pixels_do_not_count():
    # Two patches of four are white, the others grey; the error is the share of white among the hidden ones.
    image = np.full((1, 4, 4, 1), 127.5)
    image[:, :2] = 255
    source = Source(np.repeat(image, 64, axis=0).astype(np.uint8), np.zeros(64, int))
    evaluator = dataclasses.replace(HIDDEN, images=64, mask_ratio=0.75)
    shares = []
    for i in range(64):
        view = View(draw_order(jax.random.fold_in(KEY, i), 4), num_kept(4, 0.75))
        m = np.asarray(hidden_pixels(view, jnp.zeros((4, 4, 1)), 2))[..., 0]
        shares.append((pixels(source, i)[..., 0] ** 2 * m).sum() / m.sum())
    model = Fake(num_patches=4)
    assert error(evaluator, model, source=source) == pytest.approx(np.mean(shares), rel=1e-5)
    assert len(set(np.round(shares, 3))) == 2  # as many white as can be hidden of three: one or two


@pytest.mark.parametrize("mask_ratio", [0.25, 0.75])
def test_the_best_network_has_the_error_that_theory_says(mask_ratio):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, 16)) * 0.05
    covariance = jnp.asarray(mixing @ mixing.T + 0.01 * np.eye(16), jnp.float32)
    oracle = GaussianOracle(CosineTable(), jnp.zeros((4, 4, 1)), covariance)
    images = np.clip((np.asarray(oracle.sample(jax.random.key(0), 600)) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    evaluator = dataclasses.replace(HIDDEN, images=600, mask_ratio=mask_ratio)
    found = error(evaluator, oracle, source=Source(images, np.zeros(600, int)), batch_size=200)

    def expected(key) -> jax.Array:
        view = View(draw_order(key, 16), num_kept(16, mask_ratio))
        m = hidden_pixels(view, oracle.mean, 1)
        return jnp.sum(oracle.errors(jnp.asarray(0.0), view).x0 * m) / jnp.sum(m)

    theory = float(jnp.mean(jax.vmap(expected)(jax.random.split(jax.random.key(1), 400))))
    assert found == pytest.approx(theory, rel=0.05)
    assert found < 0.95 * float(jnp.mean(jnp.diag(covariance)))  # neighbours do tell something


def test_no_number_depends_on_how_images_are_batched():
    source = noise(37)
    found = [error(source=source, batch_size=b, devices=d) for b, d in ((8, 8), (40, 8), (7, 1))]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_an_image_that_cannot_be_read_is_left_out():
    black = Source(np.zeros((40, 8, 8, 1), np.uint8), np.zeros(40, int))
    black.images[[3, 4]] = 128  # grey: nearly no error
    assert error(source=black) == pytest.approx(38 / 40, rel=1e-3)
    black.broken = (3, 4)
    assert error(source=black) == pytest.approx(1.0)


def test_the_key_alone_decides_what_is_hidden():
    evaluate = HIDDEN.build(context(SOURCE, SOURCE))
    one, again, other = evaluate(Fake(), KEY), evaluate(Fake(), KEY), evaluate(Fake(), jax.random.key(6))
    assert one.scalars == again.scalars != other.scalars
    np.testing.assert_array_equal(one.images["pictures"], again.images["pictures"])
    assert (one.images["pictures"] != other.images["pictures"]).any()


def test_the_picture_shows_image_view_prediction_and_both_together():
    picture = HIDDEN.build(context(SOURCE, SOURCE))(Fake(copied=3.0), KEY).images["pictures"]
    assert picture.shape == (4 * 8 + 3 * GAP, 5 * 8 + 4 * GAP, 3)
    assert picture.dtype == np.uint8
    for column in range(5):
        image, seen, predicted, together = (
            picture[(8 + GAP) * row :][:8, (8 + GAP) * column :][:, :8, 0].astype(int) for row in range(4)
        )
        source = SOURCE.images[column, ..., 0].astype(int)
        np.testing.assert_array_equal(image, source)
        visible = seen == source
        assert 0.2 < visible.mean() < 0.4  # a quarter, and what happens to be grey
        assert (np.abs(seen[~visible] - 128) <= 1).all()  # hidden ones are grey
        # Three times too bright or dark, clipped to what a picture can show.
        np.testing.assert_allclose(predicted, np.clip(3 * (source - 127.5) + 127.5, 0, 255), atol=1)
        clear = np.abs(source - predicted) > 2
        np.testing.assert_array_equal(together[clear], np.where(visible, source, predicted)[clear])


@pytest.mark.parametrize(("images", "broken", "columns"), [(4, (), 4), (40, (0, 2, 3, 4, 5, 6, 7), 5), (8, (1, 2), 5)])
def test_the_picture_shows_images_that_were_read_and_nothing_else(images, broken, columns):
    # A batch of 8: the first may be filled up, or have fewer images than are to be shown.
    source = Source(SOURCE.images, SOURCE._labels, broken=broken)
    evaluator = dataclasses.replace(HIDDEN, images=images)
    picture = evaluator.build(context(source, source, batch_size=8))(Fake(), KEY).images["pictures"]
    assert picture.shape == (4 * 8 + 3 * GAP, columns * 8 + (columns - 1) * GAP, 3)
    read = np.setdiff1d(np.arange(images) * 40 // images, broken)
    for column, index in enumerate(read[:columns]):
        shown = picture[:8, (8 + GAP) * column :][:, :8, 0]
        np.testing.assert_array_equal(shown, SOURCE.images[index, ..., 0])


def test_where_no_image_can_be_read_there_is_no_number_and_no_picture():
    source = Source(SOURCE.images, SOURCE._labels, broken=range(40))
    report = HIDDEN.build(context(source, source))(Fake(), KEY)
    assert np.isnan(report.scalars["error"])
    assert report.images == {}


@pytest.mark.parametrize(("field", "value"), [("images", 0), ("pictures", 0), ("mask_ratio", 0.0), ("mask_ratio", 1.0)])
def test_what_cannot_work_is_refused_before_training(field, value):
    with pytest.raises(BadInput) as refused:
        dataclasses.replace(HIDDEN, **{field: value}).build(context(SOURCE, SOURCE))
    flag = f"eval.reconstruction.{field}"
    assert refused.value.field == flag
    assert str(refused.value).startswith(f"{flag}: {value} is not valid. Use ")


@pytest.mark.parametrize("ratio", [0.99, 1.0, 0.0, -0.1, 1e-17, float("nan")])
def test_a_mask_ratio_that_hides_no_patch_or_all_of_them_is_refused(ratio):
    evaluator = dataclasses.replace(HIDDEN, mask_ratio=ratio)
    with pytest.raises(BadInput, match=r"Use 0\.0204, which hides one patch of 49, to 0\.9795, which") as refused:
        evaluator.validate(49, "eval.hidden")
    assert str(refused.value).startswith(f"eval.hidden.mask_ratio: {ratio} is not valid.")


def test_an_image_of_one_patch_cannot_be_masked():
    with pytest.raises(BadInput, match="smaller patch") as refused:
        HIDDEN.validate(1)
    assert refused.value.field == "eval.reconstruction"


@pytest.mark.parametrize("num_patches", [2, 3, *(side**2 for side in range(2, 65)), 10_000, 16_384, 65_536, 100_000])
def test_the_ratios_that_are_advised_do_what_is_said_of_them(num_patches):
    least, most = ratios(num_patches)
    assert num_kept(num_patches, least) == num_patches - 1
    assert num_kept(num_patches, most) == 1
    for ratio in (least, most):
        dataclasses.replace(HIDDEN, mask_ratio=float(f"{ratio:g}")).validate(num_patches)
