"""Guided denoisers: their algebra, that they compose, and that what is not needed is not computed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases.guidance import Masked

from umd_eqx.core.errors import BadInput
from umd_eqx.core.masking import View
from umd_eqx.core.paths import NETWORK_STEPS, RectifiedFlow
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.types import NO_CLASS, Cond
from umd_eqx.models import AbstractModel
from umd_eqx.sampling import (
    DDIM,
    AbstractDenoiser,
    Autoguidance,
    ClassifierFree,
    Clipped,
    Interval,
    ModelDenoiser,
    guide,
)

RNG = np.random.default_rng(0)
PATH = RectifiedFlow()
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 3)), jnp.float32)
TIMES = jnp.asarray([0.1, 0.5, 0.9])
LABELS = jnp.asarray([0, 3, NO_CLASS])
UNLABELLED = jnp.full(3, NO_CLASS)
VIEW = View(jnp.asarray([2, 0, 3, 1]), kept=3)


@eqx.filter_jit
def denoise(denoiser, x, t, y):
    return jax.vmap(lambda x, t, y: denoiser.with_cond(denoiser.model.cond(y))(x, t))(x, t, y)


class Toy(AbstractModel):
    """Predicts `gain` times an image plus its label, and says each time that it is asked."""

    gain: jax.Array
    asked: list
    num_classes: int | None = eqx.field(static=True, default=5)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(8, 8, 3))
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y=NO_CLASS):
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x, cond, view=None, *, key=None):
        jax.debug.callback(lambda _: self.asked.append(1), jnp.sum(x))
        seen = 1.0 if view is None else float(view.kept)
        label = 0.0 if self.num_classes is None else cond.y.astype(x.dtype)
        return X0EpsPrediction(seen * self.gain * x + label, cond.t / NETWORK_STEPS * x - self.gain)


def along(model, **options) -> ModelDenoiser:
    return ModelDenoiser(model, PATH, **options)


def toy(gain=2.0, **fields) -> ModelDenoiser:
    return along(Toy(jnp.asarray(gain), [], **fields))


def assert_close(ours, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def mixed(a, b, scale):
    """b and beyond, seen from a."""
    return jax.tree.map(lambda a, b: np.asarray(a) + scale * (np.asarray(b) - np.asarray(a)), a, b)


@pytest.fixture(scope="module")
def network(random_model):
    return random_model(8, labels=True)


@pytest.fixture(scope="module")
def denoiser(network):
    return along(network)


@pytest.fixture(scope="module")
def plain(denoiser):
    """With the label, and without."""
    return [denoise(denoiser, IMAGES, TIMES, labels) for labels in (LABELS, UNLABELLED)]


class TestClassifierFree:
    @pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
    def test_goes_from_no_label_through_the_label_and_beyond(self, denoiser, plain, scale):
        cond, uncond = plain
        guided = denoise(ClassifierFree(denoiser, scale), IMAGES, TIMES, LABELS)
        assert_close(guided, mixed(uncond, cond, scale), 5e-5)
        assert np.abs(np.asarray(cond.x0 - uncond.x0)[:2]).max() > 0.1

    @pytest.mark.parametrize("head", ["x0", "eps"])
    def test_goes_beyond_whichever_output_decides(self, network, head):
        denoiser = along(network, head=head)
        cond, uncond = (denoise(denoiser, IMAGES, TIMES, labels) for labels in (LABELS, UNLABELLED))
        guided = denoise(ClassifierFree(denoiser, 2.0), IMAGES, TIMES, LABELS)
        assert_close(guided, mixed(uncond, cond, 2.0), 1e-4)
        said = jax.vmap(lambda x, t, y: network(x, network.cond(y).at(NETWORK_STEPS * t)))
        outputs = [getattr(eqx.filter_jit(said)(IMAGES, TIMES, labels), head) for labels in (UNLABELLED, LABELS)]
        assert_close(getattr(guided, head), mixed(*outputs, 2.0), 5e-5)

    def test_clean_image_and_noise_agree_with_the_noised_image(self, denoiser):
        guided = denoise(ClassifierFree(denoiser, 3.5), IMAGES, TIMES, LABELS)
        assert_close(jax.vmap(PATH.interpolate)(guided.x0, guided.eps, TIMES), IMAGES, 5e-5)

    def test_another_scale_is_not_another_program(self, denoiser):
        guided = [ClassifierFree(denoiser, scale) for scale in (2.0, 3.5)]
        assert eqx.tree_equal(*(eqx.partition(g, eqx.is_array)[1] for g in guided))

    def test_both_passes_are_one_batch(self, denoiser):
        # There are no more products than in one pass: they have more rows.
        def products(d):
            one = lambda x, t, y: d.with_cond(d.model.cond(y))(x, t)  # noqa: E731
            return str(jax.make_jaxpr(jax.vmap(one))(IMAGES, TIMES, LABELS)).count("dot_general")

        assert products(ClassifierFree(denoiser, 2.0)) == products(denoiser) > 0

    def test_sees_only_what_the_network_does(self, network):
        masked = along(Masked(network, VIEW))
        cond, uncond = (denoise(masked, IMAGES, TIMES, y) for y in (LABELS, UNLABELLED))
        guided = denoise(ClassifierFree(masked, 2.0), IMAGES, TIMES, LABELS)
        assert_close(guided, mixed(uncond, cond, 2.0), 5e-5)
        whole = denoise(ClassifierFree(along(network), 2.0), IMAGES, TIMES, LABELS)
        assert np.abs(np.asarray(whole.x0 - guided.x0)).max() > 0.1

    def test_images_of_a_batch_are_what_they_are_alone(self, denoiser):
        guided = ClassifierFree(denoiser, 2.0)
        together = denoise(guided, IMAGES, TIMES, LABELS)
        alone = eqx.filter_jit(lambda d, x, t, y: d.with_cond(d.model.cond(y))(x, t))
        for i, one in enumerate(zip(IMAGES, TIMES, LABELS, strict=True)):
            assert_close(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together), alone(guided, *one), 5e-5)

    def test_a_network_without_labels_is_refused(self):
        with pytest.raises(BadInput, match="no labels") as error:
            ClassifierFree(toy(num_classes=None), 2.0)
        assert error.value.field == "cfg_scale"

    def test_no_guidance_costs_nothing(self, denoiser):
        assert guide(denoiser, 1.0) is denoiser
        assert guide(toy(num_classes=None), 1.0).model.num_classes is None
        assert isinstance(guide(denoiser, 1.5), ClassifierFree)
        with pytest.raises(BadInput):
            guide(toy(num_classes=None), 1.5)


class TestAutoguidance:
    def test_goes_from_the_weak_through_the_strong_and_beyond(self, denoiser, random_model):
        weak = along(random_model(8, labels=True, variant="mu/2", conditioning="token", seed=1))
        guided = Autoguidance(denoiser, weak, 1.8)
        expected = [denoise(d, IMAGES, TIMES, LABELS) for d in (weak, denoiser)]
        assert_close(denoise(guided, IMAGES, TIMES, LABELS), mixed(*expected, 1.8), 1e-4)

    def test_the_weak_may_know_no_labels(self):
        strong, weak = toy(2.0), toy(3.0, num_classes=None)
        guided = Autoguidance(strong, weak, 2.0)
        assert guided.model.num_classes == 5
        expected = [denoise(d, IMAGES, TIMES, LABELS) for d in (weak, strong)]
        assert_close(denoise(guided, IMAGES, TIMES, LABELS), mixed(*expected, 2.0))

    def test_the_weak_may_be_told_something_else_of_the_same_label(self, denoiser, random_model):
        weak = along(random_model(8, labels=True, prediction="u", seed=1))
        guided = Autoguidance(denoiser, weak, 1.8)
        expected = [denoise(d, IMAGES, TIMES, LABELS) for d in (weak, denoiser)]
        assert_close(denoise(guided, IMAGES, TIMES, LABELS), mixed(*expected, 1.8), 1e-4)

    def test_each_sees_through_its_own_view(self):
        weak, strong = (along(Masked(toy(gain).model, view)) for gain, view in ((1.0, None), (2.0, VIEW)))
        expected = [denoise(d, IMAGES, TIMES, LABELS) for d in (weak, strong)]
        assert_close(denoise(Autoguidance(strong, weak, 2.0), IMAGES, TIMES, LABELS), mixed(*expected, 2.0))

    @pytest.mark.parametrize(
        ("weak", "said"), [({"image_shape": (8, 8, 1)}, r"\(8, 8, 1\)"), ({"num_classes": 7}, "7 classes, not 5")]
    )
    def test_a_network_of_other_data_is_refused(self, weak, said):
        with pytest.raises(BadInput, match=said) as error:
            Autoguidance(toy(), toy(**weak), 2.0)
        assert error.value.field == "weak"


class TestInterval:
    @pytest.mark.parametrize(
        ("t", "guided"), [(0.0, False), (0.299, False), (0.3, True), (0.5, True), (0.7, True), (0.701, False)]
    )
    def test_guides_at_times_within_and_asks_one_network_alone(self, t, guided):
        plain, other = toy(2.0), toy(7.0)
        denoiser = Interval(other, plain, 0.3, 0.7)

        # One time for all images, as a sampler has it.
        def shared(denoiser):
            return jax.jit(
                lambda x, t, y: jax.vmap(lambda x, y: denoiser.with_cond(denoiser.model.cond(y))(x, t))(x, y)
            )

        result = shared(denoiser)(IMAGES, jnp.asarray(t), LABELS)
        jax.effects_barrier()
        asked = (len(other.model.asked), len(plain.model.asked))
        assert asked == ((3, 0) if guided else (0, 3))
        assert_close(result, shared(other if guided else plain)(IMAGES, jnp.asarray(t), LABELS))

    def test_every_image_may_have_its_own_time(self):
        plain, other = toy(2.0), toy(7.0)
        result = denoise(Interval(other, plain, 0.3, 0.7), IMAGES, TIMES, LABELS)
        inside, outside = (denoise(d, IMAGES, TIMES, LABELS) for d in (other, plain))
        pairs = ((outside, 0), (inside, 1), (outside, 2))
        assert_close(result.x0, jnp.stack([denoised.x0[i] for denoised, i in pairs]))

    def test_the_ends_are_met(self):
        denoiser = Interval(toy(7.0), toy(2.0), 0.29, 0.57)
        for end in (0.29, 0.57):
            t = jnp.asarray(end)
            assert_close(denoiser(IMAGES[0], t), toy(7.0)(IMAGES[0], t))

    @pytest.mark.parametrize("ends", [(0.5, 0.5), (0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
    def test_an_interval_that_is_none_is_refused(self, ends):
        with pytest.raises(BadInput, match="is not an interval") as error:
            Interval(toy(), toy(), *ends)
        assert error.value.field == "cfg_interval"


def test_they_compose():
    strong, weak = toy(2.0), toy(1.5)
    guided = Interval(Autoguidance(ClassifierFree(strong, 3.0), weak, 2.0), strong, 0.3, 0.7)
    told = ((strong, LABELS), (strong, UNLABELLED), (weak, LABELS))
    cond, uncond, bad = (denoise(d, IMAGES, TIMES, y) for d, y in told)
    expected = mixed(bad, mixed(uncond, cond, 3.0), 2.0)
    result = denoise(guided, IMAGES, TIMES, LABELS)
    assert_close(result.x0[1], expected.x0[1])
    assert_close(result.eps[1], expected.eps[1])
    assert_close(result.x0[jnp.asarray([0, 2])], cond.x0[jnp.asarray([0, 2])])


def test_what_is_guided_is_clipped_and_not_what_guides():
    denoiser = toy(0.2)
    guided = ClassifierFree(denoiser, 3.0)
    clipped = denoise(DDIM(clip=True).clipped(guided), IMAGES, TIMES, LABELS)
    x0 = jnp.clip(denoise(guided, IMAGES, TIMES, LABELS).x0, -1.0, 1.0)
    assert_close(clipped.x0, x0)
    assert_close(clipped.eps, jax.vmap(PATH.eps_from_x0)(IMAGES, x0, TIMES), 1e-4)
    guided_by_clipped = denoise(ClassifierFree(Clipped(denoiser), 3.0), IMAGES, TIMES, LABELS)
    assert np.abs(np.asarray(clipped.x0 - guided_by_clipped.x0)).max() > 0.1
    assert DDIM(clip=False).clipped(guided) is guided


@pytest.mark.parametrize(
    "wrap",
    [
        lambda denoiser: ClassifierFree(denoiser, 2.0),
        lambda denoiser: Autoguidance(denoiser, toy(1.0), 2.0),
        lambda denoiser: Interval(ClassifierFree(denoiser, 2.0), denoiser, 0.1, 0.9),
    ],
)
def test_a_guided_denoiser_is_otherwise_the_denoiser(wrap):
    denoiser = toy(2.0)
    guided = wrap(denoiser)
    assert isinstance(guided, AbstractDenoiser)
    assert guided.model is denoiser.model
    assert guided.path is denoiser.path
    assert guided.ends == denoiser.ends
    told = guided.with_cond(guided.model.cond(4))
    assert type(told) is type(guided)
    assert int(told.cond.y) == 4
    assert int(guided.cond.y) == int(denoiser.cond.y) == NO_CLASS
