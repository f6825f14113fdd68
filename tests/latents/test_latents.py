"""Stored latents: what a manifest says and what it is held to, and that they are read as they were written."""

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Source, noise
from latents.known import SOURCE, TOKENIZER, VIEWS, settings

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.loader import training_batches
from umd_eqx.data.source import BrokenImage, DataSource
from umd_eqx.data.transforms import EvalTransform, TrainTransform
from umd_eqx.latents import store
from umd_eqx.latents.encoding import encode, prepare
from umd_eqx.latents.store import MANIFEST, ChooseView, LatentSource, Manifest, augmented, check, source_hash
from umd_eqx.latents.stream import as_latents


def stored(folder, tokenizer=TOKENIZER, **fields) -> LatentSource:
    manifest = encode(SOURCE, tokenizer, settings(**fields), folder, mesh=make_mesh(), batch_size=16)
    assert manifest is not None
    return LatentSource(folder)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> LatentSource:
    return stored(tmp_path_factory.mktemp("latents") / "folder")


def the_view(index: int, v: int) -> np.ndarray:
    return augmented(SOURCE[index]["image"], index, v, TrainTransform(8, 50.0, True), 3)


def test_it_is_a_data_source_of_every_view_of_every_image(latents):
    assert isinstance(latents, DataSource)
    assert len(latents) == 22
    assert (latents.spec.height, latents.spec.channels, latents.spec.num_classes) == (4, 8, 4)
    for index in (0, 9, 10, 21):
        example = latents[index]
        assert example["label"] == SOURCE[index]["label"]
        assert example["image"].shape == (VIEWS, 4, 4, 8)
        for v in range(VIEWS):
            posterior = TOKENIZER.encode_raw(jnp.asarray(the_view(index, v)))
            np.testing.assert_allclose(example["image"][v, ..., :4], posterior.mean, atol=1e-6)
            np.testing.assert_allclose(example["image"][v, ..., 4:], posterior.logvar, atol=1e-6)
    np.testing.assert_array_equal(latents.labels(np.arange(22)), SOURCE.labels(np.arange(22)))


def test_views_differ_and_are_what_they_were(latents):
    assert np.abs(the_view(4, 0) - the_view(4, 1)).max() > 0.1
    np.testing.assert_array_equal(the_view(4, 2), the_view(4, 2))


def test_a_pickled_source_reads_the_same(latents):
    again = pickle.loads(pickle.dumps(latents))
    np.testing.assert_array_equal(again[13]["image"], latents[13]["image"])


@pytest.mark.parametrize("mode_only", [False, True])
def test_stored_latents_train_as_latents_that_are_encoded_on_the_way(tmp_path, mode_only):
    # The same views and the same keys: the batches that a network sees are the same to float32's rounding.
    tokenizer = dataclasses.replace(TOKENIZER, logvar=None) if mode_only else TOKENIZER
    source = stored(tmp_path / "latents", tokenizer, mode_only=mode_only)

    class Encoded:
        """Every view of an image, and the pixels of the one that is asked for."""

        spec = SOURCE.spec

        def __len__(self):
            return len(SOURCE)

        def labels(self, indices):
            return SOURCE.labels(indices)

        def __getitem__(self, index):
            views = np.stack([the_view(index, v) for v in range(VIEWS)])
            return {"image": views, "label": SOURCE[index]["label"]}

    def batches(images, *, stored):
        given = training_batches(images, ChooseView(), batch_size=8, seed=5, start_step=2)
        return as_latents(given, tokenizer, jax.random.key(7), 2, mesh=make_mesh(), stored=stored)

    on_disk, on_the_way = batches(source, stored=True), batches(Encoded(), stored=False)
    for _ in range(6):  # past the end of an epoch
        ours, theirs = next(on_disk), next(on_the_way)
        assert ours.image.shape == (8, 4, 4, 4)
        np.testing.assert_allclose(ours.image, theirs.image, atol=1e-5)
        np.testing.assert_array_equal(ours.label, theirs.label)
    for some in (on_disk, on_the_way):
        some.close()


def test_a_step_draws_its_own_latents_and_resuming_draws_them_again(latents):
    def batches(first):
        source = training_batches(latents, ChooseView(), batch_size=8, seed=5, start_step=first)
        return as_latents(source, TOKENIZER, jax.random.key(7), first, mesh=make_mesh(), stored=True)

    whole, late = batches(0), batches(3)
    seen = [next(whole).image for _ in range(5)]
    np.testing.assert_array_equal(next(late).image, seen[3])
    np.testing.assert_array_equal(next(late).image, seen[4])
    # The same images at another step are other latents: an epoch is 22 images, so compare the noise that is left.
    assert float(jnp.abs(seen[0] - seen[1]).max()) > 0.1
    for stream in (whole, late):
        stream.close()


def test_half_precision_is_half_the_size_and_nearly_the_same(latents, tmp_path):
    half = stored(tmp_path / "half", dtype="float16")
    np.testing.assert_allclose(half[5]["image"], latents[5]["image"], atol=2e-3)
    assert half[5]["image"].dtype == np.float32


def test_the_manifest_says_what_the_latents_are_like(latents):
    manifest = latents.manifest
    z = np.stack([latents[i]["image"][..., :4] for i in range(22)]).astype(np.float64)
    assert manifest.mean == pytest.approx(z.mean(), abs=1e-6)
    assert manifest.std == pytest.approx(np.sqrt(z.var() + np.exp(-2)), rel=1e-5)
    np.testing.assert_allclose(manifest.channel_mean, z.mean(axis=(0, 1, 2, 3)), atol=1e-6)
    assert Manifest.read(latents._folder) == manifest
    assert manifest.digest == Manifest.read(latents._folder).digest


FITS = {
    "digest": "0123",
    "shift": 0.1,
    "scale": 1.5,
    "size": 8,
    "area_min": 50,
    "flip": True,
    "source_hash": source_hash(SOURCE),
}


def test_latents_that_are_what_a_run_asks_for(latents):
    check(latents.manifest, **FITS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"digest": "4567"}, r"encoded with another tokenizer \(0123, now 4567\). Set `tokenizer` to the one"),
        ({"scale": 2.0}, r"encoded with another scale of the tokenizer \(1.5, now 2.0\)"),
        ({"shift": 0.0}, r"encoded with another shift of the tokenizer"),
        ({"size": 16}, r"encoded with another image size .*Use `data.size=8`"),
        ({"area_min": 80.0}, r"encoded with another augmentation \(50.0, now 80.0\). Use `data.area_min=50`"),
        ({"flip": False}, r"encoded with another augmentation .*Use `data.flip=True`"),
        ({"source_hash": source_hash(noise(22, seed=1))}, r"encoded with other images"),
    ],
)
def test_latents_that_are_not(latents, changed, message):
    with pytest.raises(BadInput, match=message) as refusal:
        check(latents.manifest, **(FITS | changed))
    assert refusal.value.field == "data.latents"
    assert "\n" not in str(refusal.value)


def test_data_are_told_from_other_data_wherever_they_lie():
    assert source_hash(SOURCE) == source_hash(noise(22))
    assert source_hash(SOURCE) != source_hash(noise(23))
    assert source_hash(SOURCE) != source_hash(noise(22, seed=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not hold a complete set of latents"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 99}', "was written by a newer version"),
        ('{"format": 2, "settings": {"name": "x"}}', "cannot be read"),
        ('{"format": 1, "settings": {"name": "x"}}', "older version of this program, which cropped images differently"),
    ],
)
def test_manifests_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(BadInput, match=message):
        LatentSource(tmp_path)


def test_shards_that_are_missing_or_damaged(tmp_path):
    source = stored(tmp_path / "latents")
    shard = tmp_path / "latents" / source.manifest.settings.shard_name(1)
    content = bytearray(shard.read_bytes())
    content[2000:3000] = bytes(1000)
    shard.write_bytes(bytes(content))
    with pytest.raises(BadInput, match=rf"{shard.name} is damaged, or not the shard of this name"):
        LatentSource(tmp_path / "latents")
    broken = LatentSource(tmp_path / "latents", checked=True)  # damaged after it was opened
    found = 0
    for index in range(10, 20):
        try:
            broken[index]
        except BrokenImage:
            found += 1
    assert found > 0
    shard.unlink()
    with pytest.raises(BadInput, match="is missing"):
        LatentSource(tmp_path / "latents")


def swap(folder, *, suffixes):
    first, second = (folder / settings().shard_name(shard) for shard in (0, 1))
    for suffix in suffixes:
        a, b = first.with_suffix(suffix), second.with_suffix(suffix)
        whole = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(whole)


@pytest.mark.parametrize("suffixes", [(".array_record",), (".array_record", ".json")])
def test_swapped_shards_are_refused_and_written_anew(tmp_path, suffixes):
    folder = tmp_path / "latents"
    stored(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    swap(folder, suffixes=suffixes)
    with pytest.raises(BadInput, match="is damaged, or not the shard of this name"):
        LatentSource(folder)
    assert prepare(folder, settings()) == [0, 1]
    stored(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_flipped_bit_in_any_byte_of_a_shard_is_seen_and_the_shard_written_anew(tmp_path):
    folder = tmp_path / "latents"
    source = stored(folder)
    shard = folder / source.manifest.settings.shard_name(2)
    whole = shard.read_bytes()
    for at in range(0, len(whole), len(whole) // 12):
        content = bytearray(whole)
        content[at] ^= 1
        shard.write_bytes(content)
        with pytest.raises(BadInput, match="is damaged"):
            LatentSource(folder)
        assert prepare(folder, settings()) == [2]
    stored(folder)
    assert shard.read_bytes() == whole


def test_sums_of_an_older_version_are_understood(tmp_path):
    folder = tmp_path / "latents"
    stored(folder)
    for path in folder.glob("latents-*.json"):
        sums = json.loads(path.read_text())
        del sums["shard"]
        path.write_text(json.dumps(sums))
    assert prepare(folder, settings()) == []


def test_workers_do_not_read_all_shards_again(tmp_path, monkeypatch):
    source = stored(tmp_path / "latents")
    monkeypatch.setattr(store, "mismatched", lambda *_: pytest.fail("read again"))
    assert pickle.loads(pickle.dumps(source))[3]["label"] == source[3]["label"]


def test_a_latent_whose_label_is_not_a_class_is_broken(tmp_path):
    manifest = stored(tmp_path / "latents").manifest
    assert set(SOURCE.labels(np.arange(22))) == {0, 1, 2, 3}
    (tmp_path / "latents" / MANIFEST).write_text(dataclasses.replace(manifest, num_classes=3).text())
    source = LatentSource(tmp_path / "latents")
    labels = SOURCE.labels(np.arange(22))
    for index, label in enumerate(labels):
        if label == 3:
            with pytest.raises(BrokenImage, match=rf"image {index} is broken: its label is 3, but .* 0 .. 2"):
                source[index]
        else:
            assert source[index]["label"] == label
    np.testing.assert_array_equal(source.labels(np.arange(22)), np.where(labels == 3, -1, labels))


def test_at_100_percent_the_views_are_what_the_evaluation_sees(tmp_path):
    # Images that are not square: a view has their aspect ratio, as in training and in evaluation.
    images = Source(np.random.default_rng(0).integers(0, 256, (5, 12, 20, 1), np.uint8), np.arange(5) % 4)
    given = settings(area_min=100.0, flip=False, views=1, images=5, source=source_hash(images))
    assert encode(images, TOKENIZER, given, tmp_path / "latents", mesh=make_mesh(), batch_size=16) is not None
    source = LatentSource(tmp_path / "latents")
    for index in range(5):
        mean = TOKENIZER.encode_raw(jnp.asarray(EvalTransform(8)(images[index]["image"]))).mean
        np.testing.assert_allclose(source[index]["image"][0, ..., :4], mean, atol=1e-6)


def test_a_manifest_with_other_fields_is_another(latents):
    text = json.loads(latents.manifest.text())
    assert text["format"] == 2
    other = dataclasses.replace(latents.manifest, mean=0.0)
    assert other.digest != latents.manifest.digest
