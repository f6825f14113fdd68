"""The probe and the neighbours, on features whose answer is known."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from eval.fakes import Fake, Source, blobs, context, noise

from umd_eqx.core.errors import BadInput
from umd_eqx.eval import FewShot
from umd_eqx.eval.features import extract
from umd_eqx.eval.probes import (
    STRENGTHS,
    RidgeProbe,
    choose_l2,
    draw_shots,
    leave_one_out,
    nearest_neighbours,
    ridge_probe,
)

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
PROBE = FewShot(shots=3, seeds=2, knn=3)


@pytest.mark.parametrize(("count", "width"), [(12, 40), (40, 12), (20, 20)])
def test_the_solution_is_the_same_through_either_matrix(count, width):
    features, labels = RNG.normal(size=(count, width)), np.arange(count) % 4
    probe = ridge_probe(features, labels, 4, l2=10.0)
    # Whichever was solved, it is the minimum: the gradient of |X W - Y|^2 + l2 |W|^2 is zero there.
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-5)
    x = np.concatenate([x, np.full((count, 1), 100.0)], axis=1)
    y = 2.0 * np.eye(4)[labels] - 1.0
    np.testing.assert_allclose(x.T @ (x @ probe.weights - y) + 10.0 * probe.weights, 0.0, atol=1e-8)
    primal = np.linalg.solve(x.T @ x + 10.0 * np.eye(width + 1), x.T @ y)
    dual = x.T @ np.linalg.solve(x @ x.T + 10.0 * np.eye(count), y)
    np.testing.assert_allclose(probe.weights, primal, atol=1e-10)
    np.testing.assert_allclose(probe.weights, dual, atol=1e-10)


def test_classes_that_a_line_tells_apart_are_told_apart():
    centres = 5.0 * np.eye(4, 10)
    train_labels, test_labels = np.arange(80) % 4, np.arange(200) % 4
    train = centres[train_labels] + 0.3 * RNG.normal(size=(80, 10))
    test = centres[test_labels] + 0.3 * RNG.normal(size=(200, 10))
    assert (ridge_probe(train, train_labels, 4).predict(test) == test_labels).all()
    assert (nearest_neighbours(train, train_labels, test, 5) == test_labels).all()


def test_scale_and_offset_of_a_feature_do_not_matter():
    features, labels = RNG.normal(size=(40, 6)), np.arange(40) % 4
    moved = features * np.array([1e-2, 1.0, 1e3, 5.0, 7.0, 1e2]) + np.array([0.0, 1e3, -5.0, 2.0, 1.0, 9.0])
    plain, other = ridge_probe(features, labels, 4), ridge_probe(moved, labels, 4)
    np.testing.assert_array_equal(plain.predict(features), other.predict(moved))


def test_a_feature_that_never_changes_is_no_harm():
    features, labels = RNG.normal(size=(40, 6)), np.arange(40) % 4
    features[:, 2] = 7.0
    assert np.isfinite(ridge_probe(features, labels, 4).weights).all()


def test_a_class_that_was_not_drawn_is_never_predicted():
    probe = ridge_probe(RNG.normal(size=(40, 6)), np.arange(40) % 3, 5)
    assert set(probe.predict(RNG.normal(size=(100, 6)))) <= {0, 1, 2}


@pytest.mark.parametrize(("count", "width"), [(12, 40), (40, 12), (20, 19)])
@pytest.mark.parametrize("l2", [0.1, 1024.0])
def test_leaving_one_out_is_fitting_without_it(count, width, l2):
    features, labels = RNG.normal(size=(count, width)), np.arange(count) % 4
    scores = leave_one_out(features, labels, 4, l2)
    whole = ridge_probe(features, labels, 4, l2)
    x = np.concatenate([(features - whole.mean) / whole.std, np.full((count, 1), 100.0)], axis=1)
    y = 2.0 * np.eye(4)[labels] - 1.0
    for i in range(count):
        rest, answers = np.delete(x, i, axis=0), np.delete(y, i, axis=0)
        weights = np.linalg.solve(rest.T @ rest + l2 * np.eye(width + 1), rest.T @ answers)
        np.testing.assert_allclose(scores[i], x[i] @ weights, atol=1e-6)


def test_the_strength_that_is_chosen_suits_the_features():
    labels = np.arange(200) % 4
    clean = 5.0 * np.eye(4, 8)[labels] + 0.1 * RNG.normal(size=(200, 8))
    # Nothing to choose between where every strength is right: the strongest.
    assert choose_l2(clean, labels, 4) == max(STRENGTHS)
    # More features than images and most of them noise: a weak penalty fits the noise, the chosen one does not.
    signal = 1.5 * np.eye(4, 400)[labels]
    train, test = (signal + RNG.normal(size=signal.shape) for _ in range(2))
    chosen = choose_l2(train, labels, 4)
    accuracy = {l2: np.mean(ridge_probe(train, labels, 4, l2).predict(test) == labels) for l2 in STRENGTHS}
    assert chosen > 1.0
    assert accuracy[chosen] > accuracy[min(STRENGTHS)]
    assert accuracy[chosen] >= max(accuracy.values()) - 0.05


def test_neighbours_by_hand():
    train = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])
    labels = np.array([2, 1, 0, 0, 3])
    test = np.array([[10.0, 0.1], [0.2, 3.0], [-2.0, 0.1], [0.0, 0.0]])
    # Nearest in angle: length does not matter.
    np.testing.assert_array_equal(nearest_neighbours(train, labels, test[:3], 1), [2, 0, 3])
    # Two classes with a vote each: the lower one.
    np.testing.assert_array_equal(nearest_neighbours(train, labels, test[:1], 2), [1])
    # More neighbours than there are: all of them vote.
    np.testing.assert_array_equal(nearest_neighbours(train, labels, test, 99), [0, 0, 0, 0])


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_neighbours_do_not_depend_on_how_many_are_looked_for_at_once(rows):
    # Of 16 signs the length is 4 and every cosine a multiple of 1/16: exact in any order, with ties everywhere.
    train, test = (RNG.choice([-1.0, 1.0], (count, 16)) for count in (60, 50))
    labels = RNG.integers(0, 5, 60)
    together = nearest_neighbours(train, labels, test, 7, rows=50)
    np.testing.assert_array_equal(nearest_neighbours(train, labels, test, 7, rows=rows), together)


def test_neighbours_of_many_images_take_no_memory_for_all_pairs():
    train, test = (RNG.normal(size=(count, 4)).astype(np.float32) for count in (1000, 8000))
    tracemalloc.start()
    nearest_neighbours(train, np.arange(1000) % 5, test, 3)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8000 * 1000 * 4  # the cosines of all pairs alone


def test_a_probe_whitens_many_images_a_part_at_a_time():
    features = RNG.normal(size=(20_000, 50)).astype(np.float32)
    probe = RidgeProbe(features.mean(axis=0), features.std(axis=0), RNG.normal(size=(51, 5)))
    tracemalloc.start()
    predicted = probe.predict(features)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000 * 50 * 8  # all of them in float64
    whitened = (features.astype(np.float64) - probe.mean) / probe.std
    scores = np.concatenate([whitened, np.full((20_000, 1), 100.0)], axis=1) @ probe.weights
    assert np.mean(predicted == scores.argmax(axis=1)) == 1.0


def test_shots_are_drawn_of_each_class_without_repetition():
    labels = RNG.integers(0, 5, 300)
    drawn = draw_shots(labels, 7, seed=0)
    np.testing.assert_array_equal(labels[drawn], np.repeat(np.arange(5), 7))
    assert len(set(drawn)) == 35
    np.testing.assert_array_equal(drawn, draw_shots(labels, 7, seed=0))
    assert set(drawn) != set(draw_shots(labels, 7, seed=1))


def test_a_class_with_fewer_gives_what_it_has_and_no_label_is_no_class():
    labels = np.array([0, 0, 2, -1, 2, 2, 0])
    drawn = draw_shots(labels, 2, seed=0)
    np.testing.assert_array_equal(labels[drawn], [0, 0, 2, 2])


def test_the_report_has_every_feature_and_score_and_the_pixels():
    scalars, images = PROBE.build(context(blobs(60, 0), blobs(21, 1)))(Fake(), KEY)
    assert scalars.keys() == {
        f"{features}/{score}"
        for features in ("class_tokens", "patches", "both", "raw_pixels")
        for score in ("top1", "top1_seed0", "knn")
    }
    assert images == {}
    # The network of this test represents an image by its pixels.
    assert scalars["class_tokens/top1"] == scalars["raw_pixels/top1"] == scalars["class_tokens/knn"] == 100.0
    # The mean of all patches does not know where it was bright.
    assert scalars["patches/top1"] < 60.0
    without = dataclasses.replace(PROBE, features=("patches",), raw_pixels=False)
    assert without.build(context(blobs(60, 0), blobs(21, 1)))(Fake(), KEY).scalars.keys() == {
        *("patches/top1", "patches/top1_seed0", "patches/knn")
    }


def test_a_chosen_strength_is_reported_for_each_kind_of_features():
    probe = dataclasses.replace(PROBE, l2=None, shots=8)
    scalars = probe.build(context(blobs(60, 0), blobs(21, 1)))(Fake(), KEY).scalars
    chosen = {name: value for name, value in scalars.items() if name.endswith("/l2")}
    assert chosen.keys() == {f"{features}/l2" for features in ("class_tokens", "patches", "both", "raw_pixels")}
    assert all(min(STRENGTHS) <= value <= max(STRENGTHS) * (1 + 1e-9) for value in chosen.values())
    assert scalars["class_tokens/top1"] == 100.0


@pytest.mark.parametrize("time", [0.0, 0.7])
def test_no_number_depends_on_how_images_are_batched(time):
    # 23 and 37 divide by nothing: whatever fills up a last batch is not counted.
    probe = dataclasses.replace(PROBE, time=time, features=("class_tokens",))
    train, test = noise(37, seed=0), noise(23, seed=1)
    reports = [
        probe.build(context(train, test, batch_size=batch_size, devices=devices))(Fake(), KEY).scalars
        for batch_size, devices in ((8, 8), (40, 8), (7, 1))
    ]
    assert reports[0] == reports[1] == reports[2]


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    source, indices = noise(23), np.array([4, 7, 20, 21, 22])
    several = [
        extract(Fake(), context(source, source, batch_size=b, devices=1), "test", chosen, 0.7, KEY).class_tokens
        for b, chosen in ((5, indices), (2, indices), (1, indices[3:4]))
    ]
    np.testing.assert_array_equal(several[0], several[1])
    np.testing.assert_array_equal(several[0][3:4], several[2])
    clean = extract(Fake(), context(source, source, batch_size=8), "test", indices, 0.0, KEY).class_tokens
    assert np.abs(several[0] - clean).max() > 0.5
    other = extract(Fake(), context(source, source, batch_size=8), "test", indices, 0.7, jax.random.key(4)).class_tokens
    assert np.abs(several[0] - other).max() > 0.5


def test_reading_images_through_noise_costs_accuracy_and_leaves_the_pixels_alone():
    sources = blobs(60, 0), blobs(21, 1)
    clean = PROBE.build(context(*sources))(Fake(), KEY).scalars
    noisy = dataclasses.replace(PROBE, time=0.95).build(context(*sources))(Fake(), KEY).scalars
    assert noisy["class_tokens/top1"] < clean["class_tokens/top1"]
    assert noisy["raw_pixels/top1"] == clean["raw_pixels/top1"]


def test_a_test_image_that_cannot_be_read_is_left_out():
    labels = np.arange(20) % 4
    wrong = Source(blobs(20, 1).images, np.where(labels == 0, 1, labels))  # five with the wrong label
    assert PROBE.build(context(blobs(60, 0), wrong))(Fake(), KEY).scalars["class_tokens/top1"] == 75.0
    for broken in ((0, 4, 8, 12, 16), (0, 4, 8, 12, 16, 17, 18, 19)):
        wrong.broken = broken
        scalars = PROBE.build(context(blobs(60, 0), wrong))(Fake(), KEY).scalars
        assert scalars["class_tokens/top1"] == scalars["class_tokens/knn"] == 100.0


def test_a_training_image_that_cannot_be_read_is_left_out_and_moves_no_other():
    train = blobs(60, 0)
    whole = dataclasses.replace(PROBE, shots=15, seeds=1)
    train.broken = (3, 10, 30)
    scalars = whole.build(context(train, blobs(21, 1)))(Fake(), KEY).scalars
    kept = np.setdiff1d(np.arange(60), train.broken)
    same = Source(train.images[kept], train._labels[kept])
    other = whole.build(context(same, blobs(21, 1)))(Fake(), KEY).scalars
    assert scalars == other


def test_labels_are_read_when_they_are_first_needed_and_once():
    asked = []

    class Slow(Source):
        def labels(self, indices):
            asked.append(len(indices))
            return super().labels(indices)

    train = blobs(60, 0)
    evaluate = PROBE.build(context(Slow(train.images, train._labels), blobs(21, 1)))
    assert asked == []  # the start of a run does not wait for them
    assert evaluate(Fake(), KEY) == evaluate(Fake(), KEY)
    assert asked == [60]


def test_the_pool_and_the_test_images_are_as_many_as_asked_for():
    # Beyond the pool every label is wrong.
    train = blobs(80, 0)
    train._labels = np.where(np.arange(80) < 40, train._labels, 3 - train._labels)
    test = blobs(40, 1)
    test._labels = np.where(np.arange(40) % 10 == 0, test._labels, 3 - test._labels)
    probe = dataclasses.replace(PROBE, pool=40, test_images=4)
    assert probe.build(context(train, test))(Fake(), KEY).scalars["class_tokens/top1"] == 100.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("shots", 0), ("seeds", 0), ("knn", 0), ("pool", 0), ("test_images", 0)),
        *(("features", ()), ("time", 1.5), ("time", -0.1), ("l2", 0.0)),
    ],
)
def test_what_cannot_work_is_refused_before_training(field, value):
    with pytest.raises(BadInput) as error:
        dataclasses.replace(PROBE, **{field: value}).build(context(blobs(60, 0), blobs(20, 1)))
    flag = f"eval.fewshot.{field}"
    assert error.value.field == flag
    assert str(error.value).startswith(f"{flag}: {value} is not valid. ")


def test_the_headline_is_among_the_features():
    some = dataclasses.replace(PROBE, features=("patches", "both"))
    some.validate()
    dataclasses.replace(some, headline="both").validate()
    with pytest.raises(
        BadInput, match=r"eval.fewshot.headline: class_tokens is not valid. Choose among `eval.fewshot.f"
    ):
        dataclasses.replace(some, headline="class_tokens").validate()
