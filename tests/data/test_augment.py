"""The training transform on images that are not decoded yet."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import cmyk, jpeg, noise, slopes
from PIL import Image
from tiny_sets import encode, write

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import NO_CLASS
from umd_eqx.data.augment import augment_encoded
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.decoding import EncodedImage, EncodedSource
from umd_eqx.data.loader import batch_at
from umd_eqx.data.source import BrokenImage, open_source
from umd_eqx.data.source_configs import ImageFolder, Images
from umd_eqx.data.transforms import TrainTransform

formats = st.sampled_from([jpeg, encode, cmyk])


def both(transform, content, seed, channels=3):
    image = EncodedImage(content, channels)
    encoded, decoded = (np.random.default_rng(seed) for _ in range(2))
    found = augment_encoded(transform, image, encoded), transform(image.pixels(), decoded)
    assert encoded.random() == decoded.random()  # as many numbers were drawn
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([1, 3]),
    formats,
    st.integers(1, 60),
    st.sampled_from([8.0, 80.0, 100]),
    st.integers(0, 2**32),
)
def test_exact_is_the_transform_of_the_decoded_image_bit_for_bit(sides, channels, form, size, area_min, seed):
    ours, expected = both(TrainTransform(size, area_min), form(noise(*sides)), seed, channels)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("size", [16, 28, 64])
def test_exact_is_bit_for_bit_where_the_crop_is_not_cut_out_first(size):
    for seed in range(8):
        content = jpeg(noise(60 + 31 * seed, 300 - 27 * seed, seed=seed))
        ours, expected = both(TrainTransform(size, 8.0), content, seed)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("area_min", [30.0, 80.0, 100])
def test_fast_takes_the_same_crop_and_flip(area_min):
    content = jpeg(slopes(360, 500), subsampling=0)
    for seed in range(12):
        fast, exact = both(TrainTransform(24, area_min, decode="fast"), content, seed)
        # Where a pixel comes from, in 0 .. 255 of either side: a crop that is a pixel off is seen at its edges.
        np.testing.assert_allclose((fast + 1) * 127.5, (exact + 1) * 127.5, atol=3)
        assert np.abs((fast - exact) * 127.5).mean() < 1
        assert not np.array_equal(fast, exact)


def test_fast_is_smoother_where_the_image_is_reduced():
    content = jpeg(noise(300, 400), subsampling=0)
    fast, exact = both(TrainTransform(32, decode="fast"), content, 0)
    assert fast.std() < 0.5 * exact.std()


@pytest.mark.parametrize("content", [jpeg(noise(60, 50)), encode(noise(300, 400))], ids=["small", "png"])
def test_fast_is_exact_where_nothing_is_reduced(content):
    for seed in range(5):
        fast, exact = both(TrainTransform(32, decode="fast"), content, seed)
        np.testing.assert_array_equal(fast, exact)


def test_a_crop_is_never_enlarged_for_having_been_reduced(monkeypatch):
    asked = []
    chosen = EncodedImage.reduction

    def reduction(self, *sides):
        asked.append((chosen(self, *sides), *sides))
        return asked[-1][0]

    monkeypatch.setattr(EncodedImage, "reduction", reduction)
    for seed in range(40):
        both(TrainTransform(32, 5.0, decode="fast"), jpeg(noise(270, 200)), seed)
    assert len({s for s, *_ in asked}) >= 3
    for s, height, width, rows, columns in asked:
        assert s == 1 or (height / s >= rows and width / s >= columns)


@pytest.fixture
def photos(tmp_path):
    """Fifteen JPEGs of three classes, of which 1/1.jpg is cut short, and nothing of 2/3.jpg is an image."""
    for i in range(15):
        folder = tmp_path / str(i // 5)
        folder.mkdir(exist_ok=True)
        (folder / f"{i % 5}.jpg").write_bytes(jpeg(slopes(200 + 9 * i, 260 - 7 * i)))
    whole = (tmp_path / "1" / "1.jpg").read_bytes()
    (tmp_path / "1" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2" / "3.jpg").write_bytes(b"nothing")
    return tmp_path


@pytest.mark.parametrize("kind", [ImageFolder, Images])
def test_broken_images_are_skipped_and_counted_alike_in_both_ways(photos, kind):
    batches, broken = [], []
    for decode in ("exact", "fast"):
        source = SkipBroken(kind(str(photos)).open("train"))
        assert isinstance(source, EncodedSource)
        transform = TrainTransform(16, decode=decode)
        batches.append([batch_at(source, transform, batch_size=5, seed=1, step=step) for step in range(6)])
        broken.append(source.broken)
        again = batch_at(source, transform, batch_size=5, seed=1, step=2)  # the broken ones are known by now
        np.testing.assert_array_equal(again.image, batches[-1][2].image)
    assert broken[0] == broken[1]
    assert len(broken[0]) == (2 if kind is ImageFolder else len(broken[0]))
    for exact, fast in zip(*batches, strict=True):
        np.testing.assert_array_equal(exact.label, fast.label)
        np.testing.assert_allclose(exact.image, fast.image, atol=0.06)
    assert any(not np.array_equal(exact.image, fast.image) for exact, fast in zip(*batches, strict=True))


@pytest.mark.parametrize("classes", [0, 3])
def test_tfds_data_are_decoded_as_needed(tmp_path, classes):
    contents = [jpeg(slopes(120 + 9 * i, 160 - 7 * i)) for i in range(4)] + [b"nothing"]
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}
    names = ("image", "label") if classes else ("image",)
    records = [{"image": content, "label": i % 3} for i, content in enumerate(contents)]
    some = [{name: record[name] for name in names} for record in records]
    write(tmp_path, {"train": some, "test": some}, tfds.features.FeaturesDict({name: features[name] for name in names}))
    source = open_source("tiny", str(tmp_path), "train")
    assert isinstance(source, EncodedSource)
    for i in range(4):
        example = source.encoded(i)
        assert example is not None
        np.testing.assert_array_equal(example.image.pixels(), source[i]["image"])
        assert example.label == source[i]["label"] == (i % 3 if classes else NO_CLASS)
    with pytest.raises(BrokenImage, match="image 4 is broken: cannot identify"):
        source.encoded(4)


def test_images_in_memory_are_not_decoded_again(grey_root):
    assert SkipBroken(open_source("tiny", str(grey_root), "train")).encoded(0) is None


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_decompression_bomb_is_skipped_and_named(photos, decode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    (photos / "0" / "bomb.jpg").write_bytes(jpeg(np.zeros((350, 350, 3), np.uint8)))
    source = SkipBroken(ImageFolder(str(photos)).open("train"), max_broken=3)
    for step in range(4):
        batch_at(source, TrainTransform(16, decode=decode), batch_size=5, seed=0, step=step)
    assert len(source.broken) == 3
    fewer = SkipBroken(ImageFolder(str(photos)).open("train"), max_broken=0)
    with pytest.raises(BadInput, match="1 broken images, more than 0") as error:
        fewer[next(i for i in source.broken if "bomb" in told(source, i))]
    assert "bomb.jpg: Image size (122500 pixels) exceeds limit" in str(error.value)
    assert "\n" not in str(error.value)


def told(source, index):
    with pytest.raises(BrokenImage) as error:
        source._source[index]
    return str(error.value)


def test_an_exact_batch_is_that_of_a_source_of_pixels(photos):
    class Pixels:
        """The same images, from a source that knows of nothing but pixels."""

        def __init__(self, source):
            self.source, self.spec = source, source.spec
            self.labels = source.labels

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            return self.source[index]

    source = ImageFolder(str(photos)).open("train")
    assert not isinstance(Pixels(source), EncodedSource)
    for step in range(4):
        ours, plain = (
            batch_at(SkipBroken(each), TrainTransform(16), batch_size=5, seed=3, step=step)
            for each in (source, Pixels(source))
        )
        np.testing.assert_array_equal(ours.image, plain.image)
        np.testing.assert_array_equal(ours.label, plain.label)
