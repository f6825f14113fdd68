"""Encoding a data set: the same bytes however often it was interrupted, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Source
from latents.known import SOURCE, TOKENIZER, settings

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.broken import SkipBroken
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.latents.encoding import FIELDS, Progress, encode, prepare
from umd_eqx.latents.store import MANIFEST, LatentSource, Manifest, Settings, augmented


def encoded(folder: Path, progress: Progress | None = None, devices: int = 1, **fields) -> Manifest | None:
    mesh = make_mesh(jax.devices()[:devices])
    return encode(SOURCE, TOKENIZER, settings(**fields), folder, mesh=mesh, batch_size=16, progress=progress)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stopped_after_any_batch_it_ends_with_the_same_bytes(tmp_path):
    assert encoded(tmp_path / "whole") is not None
    for stop_after in range(1, 5):
        folder, done = tmp_path / f"stopped{stop_after}", []
        asked = Progress(done.append, lambda done=done, n=stop_after: len(done) >= n)
        assert encoded(folder, asked) is None
        assert not (folder / MANIFEST).exists()
        assert encoded(folder) is not None
        assert content(folder) == content(tmp_path / "whole")


def test_what_a_kill_leaves_half_written_is_written_again(tmp_path):
    assert encoded(tmp_path / "whole") is not None
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / MANIFEST).unlink()
    shard = folder / settings().shard_name(2)
    shard.with_suffix(".json").unlink()  # the shard is there, but nobody says that it is whole
    shard.write_bytes(shard.read_bytes()[:100])
    shard.with_name(f"{shard.name}.tmp").write_bytes(b"half")
    assert encoded(folder) is not None
    assert content(folder) == content(tmp_path / "whole")


def test_every_image_is_told_of_once(tmp_path):
    done = []
    encoded(tmp_path / "folder", Progress(done.append))
    assert done == sorted(done)
    assert done[-1] == 22


def test_eight_devices_write_what_one_does_to_float32s_rounding(tmp_path):
    one, eight = encoded(tmp_path / "one"), encoded(tmp_path / "eight", devices=8)
    assert one is not None
    assert eight is not None
    assert eight.mean == pytest.approx(one.mean, abs=1e-6)
    assert eight.std == pytest.approx(one.std, rel=1e-6)


@pytest.mark.parametrize("damage", [lambda shard: shard.unlink(), lambda shard: shard.write_bytes(b"half")])
def test_a_complete_folder_whose_shard_is_gone_or_cut_short_is_mended(tmp_path, damage):
    assert encoded(tmp_path / "folder") is not None
    whole = content(tmp_path / "folder")
    damage(tmp_path / "folder" / settings().shard_name(1))
    assert prepare(tmp_path / "folder", settings()) == [1]
    done = []
    assert encoded(tmp_path / "folder", Progress(done.append)) is not None
    assert content(tmp_path / "folder") == whole
    assert done == [17, 22]  # twelve of the images were there


def test_what_stands_in_for_a_broken_image_brings_its_own_label(tmp_path):
    images = Source(SOURCE.images, np.arange(22), classes=22, broken=(4, 21))
    source = SkipBroken(images)
    assert encode(source, TOKENIZER, settings(), tmp_path / "folder", mesh=make_mesh(jax.devices()[:1])) is not None
    stored = LatentSource(tmp_path / "folder")
    for index, stand_in in ((3, 3), (4, 5), (21, 0)):
        assert stored[index]["label"] == source[index]["label"] == stand_in
        expected = augmented(source[index]["image"], index, 2, TrainTransform(8, 50.0, True), 3)
        mean = TOKENIZER.encode_raw(jnp.asarray(expected)).mean
        np.testing.assert_allclose(stored[index]["image"][2, ..., :4], mean, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        ({"views": 2}, "views", "was begun with views 3, and now it is 2"),
        ({"tokenizer": "9"}, "tokenizer", "was begun with tokenizer 0123, and now it is 9"),
        ({"seed": 1}, "seed", "was begun with seed 3, and now it is 1"),
        ({"dtype": "float16"}, "half", "was begun with dtype float32, and now it is float16"),
        ({"images": 21}, "limit", "was begun with images 22, and now it is 21"),
    ],
)
def test_a_folder_that_was_begun_otherwise(tmp_path, changed, field, message):
    prepare(tmp_path / "folder", settings())
    with pytest.raises(BadInput, match=message) as refusal:
        prepare(tmp_path / "folder", settings(**changed))
    assert refusal.value.field == field


def test_a_folder_that_an_older_version_began(tmp_path):
    prepare(tmp_path / "folder", settings())
    path = tmp_path / "folder" / "settings.json"
    older = json.loads(path.read_text())
    del older["format"]  # as it was written before there was one
    path.write_text(json.dumps(older))
    with pytest.raises(BadInput, match="older version of this program, which cropped images differently") as refusal:
        prepare(tmp_path / "folder", settings())
    assert refusal.value.field == "out"


def test_each_of_the_settings_has_its_flag():
    assert FIELDS.keys() == {field.name for field in dataclasses.fields(Settings)}


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match=r"holds 'thesis.tex' but no latents"):
        prepare(tmp_path, settings())


def test_a_disk_that_is_too_small(tmp_path):
    with pytest.raises(BadInput, match=r"MB free, but the missing latents need up to .* MB. Free some space"):
        prepare(tmp_path / "folder", settings(views=10**13))
    assert not (tmp_path / "folder" / "settings.json").exists()  # other settings may be tried


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_cannot_be_read(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BadInput, match="cannot be read"):
        prepare(tmp_path, settings())
