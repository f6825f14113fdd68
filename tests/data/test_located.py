"""Which source reads the folder of `--data.dir`, and what a run records of it."""

import dataclasses
from pathlib import Path

import pytest
from own_images import KINDS, as_npz, drawn
from tiny_sets import encode, image_features, write

from umd_eqx.core.errors import BadInput
from umd_eqx.core.types import DataSpec
from umd_eqx.data.source_configs import TFDS, ImageFolder, Images
from umd_eqx.recipes.config import Config, DataConfig
from umd_eqx.recipes.pretrain import umd, umd_b4_in64
from umd_eqx.runs.resolved import resolve, with_latents_of
from umd_eqx.runs.workspace import claim, default_run_dir, record

EXPECTED = DataSpec("imagenet2012", 9, 9, None, None, 3, 9)


def with_source(source, recipe=umd, **fields) -> Config:
    config = recipe()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, **fields))


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_found_by_looking_and_named_as_their_folder(tmp_path, kind):
    root = KINDS[kind](tmp_path / "My pets", drawn(20))
    config = resolve(with_source(TFDS(dir=str(root)), expected=EXPECTED)).config
    assert config.data.source == Images(str(root), "My pets")
    assert config.data.expected is None
    assert config.data.describe() == DataSpec("My pets", 18, 2, 8, 8, 1, 10)


def test_a_name_that_was_given_is_kept_and_that_of_the_preset_is_not(tmp_path):
    root = str(as_npz(tmp_path / "some", drawn(20)))
    recipe = umd_b4_in64()
    assert recipe.data.source == TFDS("imagenet2012")
    for name, title in (("imagenet2012", "some"), ("pets", "pets"), ("fashion_mnist", "some")):
        config = resolve(with_source(TFDS(name, root), umd_b4_in64), recipe=recipe).config
        assert config.data.source == Images(root, title)
    assert config.data.describe().num_test == 2  # its split is called validation in the preset


def test_tfds_data_and_what_cannot_be_found_are_left_to_tfds(tmp_path):
    records = [{"image": encode(image), "label": label} for image, label in drawn(5)]
    write(tmp_path / "root", {"train": records, "test": records[:2]}, image_features((8, 8, 1), classes=10))
    for folder in (tmp_path / "root", tmp_path / "root" / "tiny", tmp_path / "nothing", tmp_path):
        for source in (TFDS("tiny", str(folder)), TFDS("tiny"), ImageFolder(str(folder))):
            assert source.located() == source
    assert TFDS("tiny", "gs://bucket/folder").located() == TFDS("tiny", "gs://bucket/folder")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BadInput, match=r"notes\.txt is not a folder of images"):
        TFDS("tiny", str(tmp_path / "notes.txt")).splits()


def identified(source, **fields) -> Config:
    return resolve(with_source(source, **fields)).identified().config


def started(run_dir: Path, config: Config) -> Path:
    run_dir.mkdir()
    record(run_dir, config, "umd", umd())
    return run_dir


def test_a_run_is_continued_on_the_same_images_whatever_holds_them(tmp_path):
    roots = [make(tmp_path / name, drawn(30)) for name, make in KINDS.items()]
    run_dir = started(tmp_path / "run", identified(TFDS(dir=str(roots[0]))))
    for root in roots:
        assert claim(run_dir, identified(TFDS("name", str(root))), None) is not None
    other = as_npz(tmp_path / "other" / roots[0].name, drawn(30, seed=1))
    with pytest.raises(BadInput, match=r"data\.source\.dir: the run in .* was started with other images"):
        claim(run_dir, identified(TFDS(dir=str(other))), None)


def test_the_same_name_does_not_continue_a_run_on_other_tfds_data(tmp_path):
    roots = []
    for i, images in enumerate((drawn(6), drawn(6, seed=1), drawn(6))):
        records = [{"image": encode(image), "label": label} for image, label in images]
        roots.append(tmp_path / f"root{i}")
        write(roots[-1], {"train": records, "test": records[:2]}, image_features((8, 8, 1), classes=10))
    first, second, third = (identified(TFDS("tiny", str(root))) for root in roots)
    assert first.data.content == third.data.content
    run_dir = started(tmp_path / "run", first)
    claim(run_dir, third, None)
    with pytest.raises(BadInput, match="was started with other images"):
        claim(run_dir, second, None)


def test_runs_from_before_there_were_fingerprints_are_told_by_name(tmp_path):
    run_dir = started(tmp_path / "run", with_source(TFDS()))
    claim(run_dir, identified(TFDS()), None)
    with pytest.raises(BadInput, match="was started with fashion_mnist, and now it is mnist"):
        claim(run_dir, with_source(TFDS("mnist"), content="0" * 32), None)


def test_the_fingerprint_is_neither_an_override_nor_in_the_name_of_a_run(tmp_path):
    recipe, config = umd(), identified(TFDS())
    assert config.data.content is not None
    assert record(tmp_path, config, "umd", with_latents_of(recipe, config))["overrides"] == {}
    assert default_run_dir("umd", config, with_latents_of(recipe, config)) == Path("runs/umd")


def test_the_most_images_that_may_be_broken_follow_from_the_size_of_a_split(tmp_path):
    root = as_npz(tmp_path / "some", [(image, 9 if i < 13 else i % 2) for i, (image, _) in enumerate(drawn(400))])
    images = Images(str(root), classes=2)
    data = DataConfig(source=images, train_split="train+test", test_split="train[:50%]")
    train, _ = data.open()
    with pytest.raises(BadInput, match=r"data\.max_broken: 11 broken images, more than 10"):
        [train[i] for i in range(400)]
    train, _ = dataclasses.replace(data, max_broken=13).open()
    assert len([train[i] for i in range(400)]) == 400
    assert len(train.broken) == 13
