"""Guided models: their algebra, that they compose, and that what is not needed is not computed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from umd_eqx.models.guidance import Autoguidance, ClassifierFree, Interval, guide

from umd_eqx.errors import BadInput
from umd_eqx.masking import View
from umd_eqx.models import AbstractModel, Part
from umd_eqx.types import NO_CLASS, Prediction, Representation

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 3)), jnp.float32)
TIMES = jnp.asarray([100.0, 500.0, 900.0])
LABELS = jnp.asarray([0, 3, NO_CLASS])
VIEW = View(jnp.asarray([2, 0, 3, 1]), kept=3)


@eqx.filter_jit
def predict(model, x, t, y, view=None):
    return jax.vmap(lambda x, t, y: model(x, t, y, view))(x, t, y)


class Toy(AbstractModel):
    """Predicts `gain` times an image plus its label, and says each time that it is asked."""

    gain: jax.Array
    asked: list
    num_classes: int | None = eqx.field(static=True, default=5)
    patch: int = eqx.field(static=True, default=4)
    image_shape: tuple[int, int, int] = eqx.field(static=True, default=(8, 8, 3))

    @property
    def num_patches(self):
        return (self.image_shape[0] // self.patch) * (self.image_shape[1] // self.patch)

    def __call__(self, x, t, y, view=None, *, key=None):
        jax.debug.callback(lambda _: self.asked.append(1), jnp.sum(x))
        seen = 1.0 if view is None else float(view.kept)
        return Prediction(seen * self.gain * x + y.astype(x.dtype), t * x - self.gain)

    def represent(self, x, t, y):
        return Representation(self.gain * x.reshape(-1), x.reshape(-1))


def toy(gain=2.0, **fields) -> Toy:
    return Toy(jnp.asarray(gain), [], **fields)


def assert_close(ours, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def mixed(a, b, scale):
    """b and beyond, seen from a."""
    return jax.tree.map(lambda a, b: np.asarray(a) + scale * (np.asarray(b) - np.asarray(a)), a, b)


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(8, labels=True)


@pytest.fixture(scope="module")
def plain(model):
    """With the label, and without."""
    return [predict(model, IMAGES, TIMES, labels) for labels in (LABELS, jnp.full(3, NO_CLASS))]


class TestClassifierFree:
    @pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
    def test_goes_from_no_label_through_the_label_and_beyond(self, model, plain, scale):
        cond, uncond = plain
        guided = predict(ClassifierFree(model, scale), IMAGES, TIMES, LABELS)
        assert_close(guided, mixed(uncond, cond, scale), 5e-5)
        assert np.abs(np.asarray(cond.x0 - uncond.x0)[:2]).max() > 0.1

    def test_another_scale_is_not_another_program(self, model):
        guided = [ClassifierFree(model, scale) for scale in (2.0, 3.5)]
        assert eqx.tree_equal(*(eqx.partition(g, eqx.is_array)[1] for g in guided))

    def test_both_passes_are_one_batch(self, model):
        # There are no more products than in one pass: they have more rows.
        def products(m):
            jaxpr = jax.make_jaxpr(lambda x, t, y: jax.vmap(m)(x, t, y))(IMAGES, TIMES, LABELS)
            return str(jaxpr).count("dot_general")

        assert products(ClassifierFree(model, 2.0)) == products(model)

    def test_sees_only_what_is_visible(self, model):
        cond, uncond = (predict(model, IMAGES, TIMES, y, VIEW) for y in (LABELS, jnp.full(3, NO_CLASS)))
        assert_close(predict(ClassifierFree(model, 2.0), IMAGES, TIMES, LABELS, VIEW), mixed(uncond, cond, 2.0), 5e-5)

    def test_parts_together_are_what_they_are_alone(self, model):
        guided = ClassifierFree(model, 2.0)
        views = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (1, 3, *leaf.shape)), VIEW)
        parts = [
            Part(IMAGES[None], TIMES[None], LABELS[None], None),
            Part(IMAGES[None, ::-1], TIMES[None], LABELS[None], views),
        ]
        whole, hidden = eqx.filter_jit(lambda m, p: m.together(p))(guided, parts)
        assert_close(whole, jax.tree.map(lambda a: a[None], predict(guided, IMAGES, TIMES, LABELS)), 5e-5)
        alone = predict(guided, IMAGES[::-1], TIMES, LABELS, VIEW)
        assert_close(hidden, jax.tree.map(lambda a: a[None], alone), 5e-5)

    def test_a_network_without_labels_is_refused(self):
        with pytest.raises(BadInput, match="no labels") as error:
            ClassifierFree(toy(num_classes=None), 2.0)
        assert error.value.field == "--cfg-scale"

    def test_no_guidance_costs_nothing(self, model):
        assert guide(model, 1.0) is model
        assert guide(toy(num_classes=None), 1.0).num_classes is None
        assert isinstance(guide(model, 1.5), ClassifierFree)
        with pytest.raises(BadInput):
            guide(toy(num_classes=None), 1.5)


class TestAutoguidance:
    def test_goes_from_the_weak_through_the_strong_and_beyond(self, model, random_model):
        weak = random_model(8, labels=True, variant="mu/2", conditioning="token", seed=1)
        guided = Autoguidance(model, weak, 1.8)
        expected = [predict(m, IMAGES, TIMES, LABELS) for m in (weak, model)]
        assert_close(predict(guided, IMAGES, TIMES, LABELS), mixed(*expected, 1.8), 1e-4)

    def test_the_weak_may_know_no_labels(self):
        guided = Autoguidance(toy(2.0), toy(3.0, num_classes=None), 2.0)
        assert guided.num_classes == 5

    def test_a_view_hides_from_both_or_is_refused(self):
        both = [predict(toy(gain), IMAGES, TIMES, LABELS, VIEW) for gain in (1.0, 2.0)]
        guided = Autoguidance(toy(2.0), toy(1.0), 2.0)
        assert_close(predict(guided, IMAGES, TIMES, LABELS, VIEW), mixed(*both, 2.0))
        other = Autoguidance(toy(2.0), toy(1.0, patch=2), 2.0)
        with pytest.raises(ValueError, match="a view of patches of 4"):
            other(IMAGES[0], TIMES[0], LABELS[0], VIEW)

    @pytest.mark.parametrize(
        ("weak", "said"), [({"image_shape": (8, 8, 1)}, r"\(8, 8, 1\)"), ({"num_classes": 7}, "7 classes and not 5")]
    )
    def test_a_network_of_other_data_is_refused(self, weak, said):
        with pytest.raises(BadInput, match=said) as error:
            Autoguidance(toy(), toy(**weak), 2.0)
        assert error.value.field == "--weak"


class TestInterval:
    @pytest.mark.parametrize(
        ("t", "guided"), [(0.0, False), (299.0, False), (300.0, True), (500.0, True), (700.0, True), (701.0, False)]
    )
    def test_guides_at_times_within_and_asks_one_network_alone(self, t, guided):
        plain, other = toy(2.0), toy(7.0)
        model = Interval(other, plain, 0.3, 0.7)

        # One time for all images, as a sampler has it.
        @jax.jit
        def shared(x, t, y):
            return jax.vmap(lambda x, y: model(x, t, y))(x, y)

        result = shared(IMAGES, jnp.asarray(t), LABELS)
        jax.effects_barrier()
        asked = (len(other.asked), len(plain.asked))
        assert asked == ((3, 0) if guided else (0, 3))
        expected = jax.vmap(lambda x, y: (other if guided else plain)(x, jnp.asarray(t), y))(IMAGES, LABELS)
        assert_close(result, expected)

    def test_every_image_may_have_its_own_time(self):
        plain, other = toy(2.0), toy(7.0)
        result = predict(Interval(other, plain, 0.3, 0.7), IMAGES, TIMES, LABELS)
        inside, outside = (predict(m, IMAGES, TIMES, LABELS) for m in (other, plain))
        pairs = ((outside, 0), (inside, 1), (outside, 2))
        assert_close(result.x0, jnp.stack([prediction.x0[i] for prediction, i in pairs]))

    def test_the_ends_of_a_smooth_path_are_met(self):
        model = Interval(toy(7.0), toy(2.0), 0.29, 0.57)
        for end in (0.29, 0.57):
            t = 1000 * jnp.asarray(end)  # network_time
            assert_close(model(IMAGES[0], t, LABELS[0]), toy(7.0)(IMAGES[0], t, LABELS[0]))

    @pytest.mark.parametrize("ends", [(0.5, 0.5), (0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
    def test_an_interval_that_is_none_is_refused(self, ends):
        with pytest.raises(BadInput, match="no piece") as error:
            Interval(toy(), toy(), *ends)
        assert error.value.field == "--cfg-interval"


def test_they_compose():
    strong, weak = toy(2.0), toy(1.5)
    guided = Interval(Autoguidance(ClassifierFree(strong, 3.0), weak, 2.0), strong, 0.3, 0.7)
    cond, uncond, bad = (
        predict(m, IMAGES, TIMES, y) for m, y in ((strong, LABELS), (strong, jnp.full(3, NO_CLASS)), (weak, LABELS))
    )
    expected = mixed(bad, mixed(uncond, cond, 3.0), 2.0)
    result = predict(guided, IMAGES, TIMES, LABELS)
    assert_close(result.x0[1], expected.x0[1])
    assert_close(result.eps[1], expected.eps[1])
    assert_close(result.x0[jnp.asarray([0, 2])], cond.x0[jnp.asarray([0, 2])])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: ClassifierFree(model, 2.0),
        lambda model: Autoguidance(model, toy(1.0), 2.0),
        lambda model: Interval(ClassifierFree(model, 2.0), model, 0.1, 0.9),
    ],
)
def test_a_guided_model_is_otherwise_the_model(wrap):
    model = toy(2.0)
    guided = wrap(model)
    assert isinstance(guided, AbstractModel)
    for name in ("image_shape", "num_classes", "patch", "num_patches"):
        assert getattr(guided, name) == getattr(model, name)
    ours, plain = (m.represent(IMAGES[0], TIMES[0], LABELS[0]) for m in (guided, model))
    assert_close(ours, plain, 0.0)
