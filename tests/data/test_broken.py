"""Images that cannot be read, in training and in evaluation."""

import pickle

import numpy as np
import pytest
from tiny_sets import picture

from umd_eqx.core.errors import BadInput
from umd_eqx.data.broken import CountBroken, SkipBroken
from umd_eqx.data.loader import evaluation_batches, training_batches
from umd_eqx.data.source import BrokenImage, DataSource, TfdsSource, open_source, require_class
from umd_eqx.data.transforms import EvalTransform, TrainTransform


@pytest.fixture
def grey(grey_root) -> TfdsSource:
    """40 images, of which 4 and 17 are broken."""
    return open_source("tiny", str(grey_root), "train")


def refused(source: DataSource, index: int) -> str:
    with pytest.raises(BadInput) as error:
        source[index]
    assert error.value.field == "data.max_broken"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_next_image_stands_in_for_a_broken_one(grey, grey_root):
    source = SkipBroken(grey)
    for _ in range(2):
        np.testing.assert_array_equal(source[17]["image"], picture(18, 9, 7, 1))
        assert source[17]["label"] == 18 % 5
        np.testing.assert_array_equal(source[4]["image"], picture(5, 9, 7, 1))
    assert source.broken == {4, 17}
    last = SkipBroken(open_source("tiny", str(grey_root), "train[:5]"))
    np.testing.assert_array_equal(last[4]["image"], picture(0, 9, 7, 1))


def test_a_broken_image_is_counted_once_and_stays_broken(grey):
    source = CountBroken(grey)
    for _ in range(2):
        with pytest.raises(BrokenImage, match="image 17 is broken"):
            source[17]
        np.testing.assert_array_equal(source[18]["image"], picture(18, 9, 7, 1))
    assert source.broken == {17}


@pytest.mark.parametrize("wrap", [SkipBroken, CountBroken])
def test_everything_else_is_as_the_source_has_it(grey, wrap):
    source = pickle.loads(pickle.dumps(wrap(grey)))
    assert isinstance(source, DataSource)
    assert len(source) == 40
    assert source.spec == grey.spec
    np.testing.assert_array_equal(source.labels(np.arange(7)), np.arange(7) % 5)
    assert source.broken == set()


def test_more_broken_images_than_allowed_are_refused(grey):
    train, test = SkipBroken(grey, max_broken=1, split="train"), CountBroken(grey, max_broken=1, split="test")
    for _ in range(2):
        train[4]
        with pytest.raises(BrokenImage):
            test[4]
    assert "2 broken images, more than 1, in train; the last: image 17 is broken" in refused(train, 17)
    assert "2 broken images, more than 1, in test; the last: image 17 is broken" in refused(test, 17)


def test_where_every_image_is_broken_none_stands_in(grey_root):
    alone = SkipBroken(open_source("tiny", str(grey_root), "train[17:18]"))
    assert "all 1 images" in refused(alone, 0)


def test_an_evaluation_counts_what_it_leaves_out(grey):
    source = CountBroken(grey)
    for _ in range(2):
        valid = np.concatenate([batch.valid for batch in evaluation_batches(source, EvalTransform(7), 16)])
        np.testing.assert_array_equal(np.flatnonzero(~valid[:40]), [4, 17])
    assert source.broken == {4, 17}
    with pytest.raises(BadInput, match=r"data\.max_broken"):
        list(evaluation_batches(CountBroken(grey, max_broken=1), EvalTransform(7), 16))


@pytest.mark.parametrize("memory_limit", [0, 2**20])
def test_an_image_whose_label_is_not_a_class_is_broken(mislabelled_root, memory_limit):
    # Row 10 of a table of ten classes is "no class", and JAX reads it for any label past the end, and for -1.
    source = TfdsSource(mislabelled_root / "tiny/1.0.0", "train", memory_limit=memory_limit)
    assert source.spec.num_classes == 10
    for _ in range(2):
        for index, label in ((2, 10), (7, 1000), (11, -1)):
            with pytest.raises(BrokenImage, match=rf"image {index} is broken: its label is {label}, but .* 0 .. 9"):
                source[index]
        assert source[3]["label"] == 3
        assert source[19]["label"] == 9
    expected = np.arange(20) % 10
    expected[[2, 7, 11]] = -1
    np.testing.assert_array_equal(source.labels(np.arange(20)), expected)


def test_wrong_labels_are_counted_and_replaced_as_other_broken_images_are(mislabelled_root):
    source = open_source("tiny", str(mislabelled_root), "train")
    train, test = SkipBroken(source), CountBroken(source)
    stream = training_batches(train, TrainTransform(7, 100), batch_size=20, seed=0, prefetch=0)
    labels = np.asarray(next(stream).label)
    # Number 3, 8 and 12, of the classes 3, 8 and 2, stand in.
    np.testing.assert_array_equal(np.bincount(labels), [2, 1, 2, 3, 2, 2, 2, 1, 3, 2])
    assert train.broken == {2, 7, 11}
    valid = np.concatenate([batch.valid for batch in evaluation_batches(test, EvalTransform(7), 20)])
    np.testing.assert_array_equal(np.flatnonzero(~valid), [2, 7, 11])
    assert test.broken == {2, 7, 11}
    few = SkipBroken(source, max_broken=2)
    assert [few[2]["label"], few[7]["label"]] == [3, 8]
    assert "3 broken images, more than 2, in the data; the last: image 11 is broken: its label is -1" in refused(
        few, 11
    )


def test_without_classes_any_label_will_do():
    assert require_class(0, 7, 0) == 7
    assert require_class(0, 7, 8) == 7
    with pytest.raises(BrokenImage):
        require_class(0, 8, 8)
