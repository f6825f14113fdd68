"""What the network sees and what it says, on networks in which nothing is silent."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from golden_cases.network import with_tokens

from umd_eqx.core.masking import View
from umd_eqx.core.predictions import VPrediction, X0EpsPrediction, X0Prediction
from umd_eqx.core.types import NO_CLASS, Cond, IntervalCond
from umd_eqx.models import AbstractModel, Group
from umd_eqx.models.vit.conditioning import AdaLNZero, SharedAdaLN
from umd_eqx.models.vit.packed import Embedded, Packed, Segment

CONDITIONINGS = ("adaln", "shared-adaln", "token")
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(3, 16, 16, 3)), jnp.float32)
TIMES = jnp.asarray([0.0, 137.0, 1000.0])
LABELS = jnp.asarray([0, 3, 5])
ORDER = jnp.asarray(RNG.permutation(16))
HIDDEN = View(ORDER, kept=6)

predict = eqx.filter_jit(lambda model, x, t, y, view=None: model(x, model.cond(y).at(t), view))


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(16, labels=True)


def difference(a, b) -> float:
    # In numpy: JAX would compile every operation for every shape.
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(max(np.max(np.abs(np.asarray(x) - np.asarray(y))) for x, y in pairs))


def pixel_of_patch(index: int) -> tuple[int, int]:
    return 4 * (index // 4) + 1, 4 * (index % 4) + 2


def test_a_view_of_all_patches_in_any_order_is_no_view(model):
    whole = predict(model, IMAGES[0], TIMES[1], LABELS[1])
    shuffled = predict(model, IMAGES[0], TIMES[1], LABELS[1], View(ORDER, kept=16))
    assert difference(whole, shuffled) < 2e-5
    hidden = predict(model, IMAGES[0], TIMES[1], LABELS[1], HIDDEN)
    assert difference(whole, hidden) > 0.1


def test_only_visible_patches_influence_the_prediction(model):
    before = predict(model, IMAGES[0], TIMES[1], LABELS[1], HIDDEN)
    unseen, seen = (IMAGES[0].at[pixel_of_patch(int(i))].add(3.0) for i in (ORDER[6], ORDER[5]))
    assert difference(before, predict(model, unseen, TIMES[1], LABELS[1], HIDDEN)) == 0
    assert difference(before, predict(model, seen, TIMES[1], LABELS[1], HIDDEN)) > 1e-3


def test_every_pixel_is_predicted_from_the_patch_it_is_in(random_model):
    # With an identity for all blocks nothing is mixed: a patch's pixels follow from its own pixels.
    model = random_model(16)
    still = [jax.tree.map(jnp.zeros_like, stack.conditioning) for stack in (model.encoder, model.decoder)]
    model = eqx.tree_at(lambda m: (m.encoder.conditioning, m.decoder.conditioning), model, tuple(still))
    moved = IMAGES[0].at[pixel_of_patch(6)].add(3.0)
    before, after = (predict(model, x, TIMES[0], LABELS[0]) for x in (IMAGES[0], moved))
    changed = np.asarray(before.x0 != after.x0).any(-1)
    expected = np.zeros((16, 16), bool)
    expected[4:8, 8:12] = True  # row 1, column 2
    np.testing.assert_array_equal(changed, expected)


def test_no_class_is_the_last_row_of_the_label_table(model):
    moved = eqx.tree_at(lambda m: m.condition.label_table, model, replace_fn=lambda table: table.at[5].add(1.0))
    for label, is_moved in ((5, True), (NO_CLASS, True), (0, False), (4, False)):
        y = jnp.asarray(label)
        change = difference(predict(model, IMAGES[0], TIMES[1], y), predict(moved, IMAGES[0], TIMES[1], y))
        assert (change > 1e-3) is is_moved


def test_without_a_label_there_is_no_class(model):
    # Class 0 is another thing: it moves what a network that knows labels makes of an image.
    represent = eqx.filter_jit(lambda m, *told: m.represent(IMAGES[0], m.cond(*told)))
    ours, named, recorded, first = (represent(model, *told) for told in ((), (NO_CLASS,), (5,), (0,)))
    assert difference(ours, named) == difference(ours, recorded) == 0
    assert difference(ours, first) > 1e-2
    unlabelled = eqx.filter_jit(lambda m: m.represent(IMAGES[0], m.cond(3).unlabelled()))
    assert difference(unlabelled(model), ours) == 0
    said = eqx.filter_jit(lambda m: m(IMAGES[0], m.cond().at(TIMES[1])))(model)
    assert difference(said, predict(model, IMAGES[0], TIMES[1], jnp.asarray(NO_CLASS))) == 0


@pytest.mark.parametrize("label", [6, 1000, -2, -6])
def test_a_label_of_no_row_gives_no_number_at_all(model, label):
    # Wrapped or clipped to the table, as an index is by default, it would pass for "no class" or for another class.
    said = [predict(model, IMAGES[0], TIMES[1], jnp.asarray(label)), model.represent(IMAGES[0], model.cond(label))]
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(said))
    of_label = lambda y: model(IMAGES[0], model.cond(y).at(TIMES[1])).eps  # noqa: E731
    together = jax.jit(jax.vmap(of_label))(jnp.asarray([0, label]))
    assert np.isfinite(together[0]).all()  # the other images of a batch are not touched
    assert np.isnan(together[1]).all()


def test_a_model_without_labels_ignores_them(random_model):
    model = random_model(16)
    assert model.num_classes is None
    assert model.condition.label_table is None
    one, other = (predict(model, IMAGES[0], TIMES[1], jnp.asarray(label)) for label in (0, 999))
    assert difference(one, other) == 0


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_parameter_matters_whatever_the_conditioning(random_model, conditioning):
    # A decoder of another width than the encoder's, for the layers that only then exist.
    model = random_model(16, variant="nano/4", conditioning=conditioning, labels=True, remat="none")
    assert model.bridge is not None

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        predictions = jax.vmap(lambda x, t, y: model(x, model.cond(y).at(t), HIDDEN))(IMAGES, TIMES, LABELS)
        return jnp.mean(predictions.x0**2) + jnp.mean(predictions.eps**3)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model)):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_time_and_label_reach_encoder_and_decoder(random_model, conditioning):
    model = random_model(16, conditioning=conditioning, labels=True, variant="nano/4")

    @jax.jit
    def tokens(t, y):
        c = Embedded(model.condition(model.cond(y).at(t))[None, None])
        stacks = (model.encoder, jnp.ones((1, 5, 192))), (model.decoder, jnp.ones((1, 5, 64)))
        places, one = jnp.zeros((1, 5, 2)), (Segment(1, 5),)
        return [stack(Packed(x.at[:, 1, 1].set(2.0), places, one), c).tokens for stack, x in stacks]

    at = [tokens(jnp.asarray(t), jnp.asarray(y)) for t, y in ((3.0, 1), (700.0, 1), (3.0, 2))]
    for other in at[1:]:
        for before, after in zip(at[0], other, strict=True):
            assert difference(before, after) > 1e-3


def group(model, rng: np.random.Generator, count: int, kept: int | None, times: tuple[int, ...] = ()) -> Group:
    """Two rows of `count` images, of which `kept` patches are seen."""
    x = jnp.asarray(rng.normal(size=(2, count, 16, 16, 3)), jnp.float32)
    t = jnp.asarray(rng.integers(0, 1001, (2, count, *times)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 6, (2, count)))
    order = jnp.asarray(rng.permuted(np.broadcast_to(np.arange(16), (2, count, 16)), axis=-1))
    conds = jax.vmap(jax.vmap(lambda t, y: model.cond(y).at(t)))(t, y)
    return Group(x, conds, None if kept is None else jax.vmap(jax.vmap(lambda order: View(order, kept)))(order))


@pytest.mark.parametrize("times", [(), (16,)], ids=["of an image", "of each patch"])
def test_images_with_different_views_go_together_as_they_would_alone(model, times):
    # Two rows of a batch: in each two images of which 10 patches are seen, one of which 4 are, and one seen whole.
    rng = np.random.default_rng(1)
    groups = [group(model, rng, count, kept, times) for count, kept in ((2, 10), (1, 4), (1, None))]
    together = eqx.filter_jit(lambda model, groups: model.forward_groups(groups))(model, groups)
    alone = eqx.filter_jit(lambda model, groups: AbstractModel.forward_groups(model, groups))(model, groups)
    assert [prediction.x0.shape[:2] for prediction in together] == [(2, 2), (2, 1), (2, 1)]
    assert difference(together, alone) < 2e-5


def test_shared_modulation_is_own_modulations_with_equal_kernels(random_model):
    shared = random_model(16, conditioning="shared-adaln")

    def spelled_out(conditioning: SharedAdaLN) -> AdaLNZero:
        depth = conditioning.layers.shape[0]
        kernels = jnp.broadcast_to(conditioning.shared.kernel, (depth, *conditioning.shared.kernel.shape))
        linear = eqx.tree_at(lambda m: m.kernel, random_model(16).encoder.conditioning.layers, kernels)
        return AdaLNZero(eqx.tree_at(lambda m: m.bias, linear, conditioning.layers + conditioning.shared.bias))

    own = eqx.tree_at(lambda m: m.encoder.conditioning, shared, spelled_out(shared.encoder.conditioning))
    one, other = (predict(model, IMAGES[0], TIMES[1], LABELS[1]) for model in (shared, own))
    assert difference(one, other) < 2e-5


@pytest.fixture
def promotion():
    """JAX's own attention asks for bfloat16 and float32 together."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("promotion")
def test_bfloat16_changes_the_precision_and_not_the_prediction(random_model, model):
    exact = predict(model, IMAGES[0], TIMES[2], LABELS[2], HIDDEN)
    rough = predict(random_model(16, labels=True, dtype="bfloat16"), IMAGES[0], TIMES[2], LABELS[2], HIDDEN)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert b.dtype == jnp.float32
        error = np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(a)
        assert 1e-4 < error < 0.05  # 8 bits of mantissa, and not 24


@pytest.mark.usefixtures("promotion")
def test_bfloat16_represents_in_float32(random_model):
    model = random_model(16, dtype="bfloat16")
    represent = eqx.filter_eval_shape(model.represent, IMAGES[0], model.cond(LABELS[0]))
    assert {leaf.dtype for leaf in jax.tree.leaves(represent)} == {jnp.dtype("float32")}


def test_the_representation_is_the_means_of_what_the_encoder_makes_of_the_whole_image(model):
    @jax.jit
    def both(x, cond):
        return with_tokens(model, x, cond)[1], model.represent(x, cond)

    tokens, representation = both(IMAGES[0], model.cond(LABELS[0]))
    assert tokens.shape == (4 + 16, 64)
    np.testing.assert_allclose(representation.class_tokens, np.mean(tokens[:4], axis=0), atol=1e-6)
    np.testing.assert_allclose(representation.patches, np.mean(tokens[4:], axis=0), atol=1e-6)


def test_class_tokens_stay_identical_only_if_they_start_so(model):
    @jax.jit
    @jax.grad
    def gradient(class_tokens):
        one = eqx.tree_at(lambda m: m.class_tokens, model, class_tokens)
        predictions = jax.vmap(lambda x, t, y: one(x, one.cond(y).at(t), HIDDEN))(IMAGES, TIMES, LABELS)
        return jnp.mean((predictions.x0 - IMAGES) ** 2)

    for start in (np.zeros((4, 64), np.float32), np.asarray(model.class_tokens)):
        moved = start - 0.1 * np.asarray(gradient(jnp.asarray(start)))
        assert np.any(moved != start)
        spread = np.max(np.abs(moved - moved[:1]))
        assert (spread == 0) if np.all(start == 0) else (spread > 0.1)


@pytest.mark.parametrize("wrong", ["batch", "grey", "integers", "label"])
def test_a_wrong_shape_or_type_is_caught_where_it_enters(model, wrong):
    x, y = IMAGES[0], LABELS[0]
    x = {"batch": IMAGES, "grey": IMAGES[0, ..., 0], "integers": IMAGES[0].astype(jnp.int32)}.get(wrong, x)
    y = LABELS if wrong == "label" else y
    with pytest.raises(jaxtyping.TypeCheckError):
        model(x, Cond(TIMES[0], y))


def test_a_time_for_each_patch_and_one_for_the_image_do_not_go_together(model):
    rng = np.random.default_rng(1)
    groups = [group(model, rng, 1, None, times) for times in ((), (16,))]
    with pytest.raises(ValueError, match="one time per patch and groups with one time per image"):
        model.forward_groups(groups)


@pytest.mark.parametrize(
    ("prediction", "of_type", "names"),
    [
        ("x0_eps", X0EpsPrediction, ["x0", "eps"]),
        ("x0", X0Prediction, ["x0"]),
        ("v", VPrediction, ["v"]),
        ("u", VPrediction, ["v"]),
    ],
)
def test_a_network_says_what_it_predicts(random_model, prediction, of_type, names):
    model = random_model(16, labels=True, prediction=prediction)
    assert model.prediction == prediction
    assert type(model.cond(3)) is (IntervalCond if prediction == "u" else Cond)
    said = predict(model, IMAGES[0], TIMES[1], LABELS[1], HIDDEN)
    assert type(said) is of_type
    assert list(vars(said)) == names
    for leaf in jax.tree.leaves(said):
        assert (leaf.shape, leaf.dtype) == ((16, 16, 3), jnp.float32)
        assert np.std(leaf) > 0.1
    groups = model.forward_groups([group(model, np.random.default_rng(1), 2, 6)])
    assert [leaf.shape for leaf in jax.tree.leaves(groups)] == [(2, 2, 16, 16, 3)] * len(names)
