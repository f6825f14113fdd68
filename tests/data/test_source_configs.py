"""Sources as parts of a configuration: flags, identity, and dumps from before there was more than one type."""

import dataclasses
import json
from pathlib import Path

import pytest
import tyro

from umd_eqx.core.errors import BadInput
from umd_eqx.data.source_configs import SOURCES, TFDS, AbstractSource, ImageFolder
from umd_eqx.recipes.config import DataConfig
from umd_eqx.recipes.dump import TYPES, dump, load, run_identity
from umd_eqx.recipes.pretrain import umd
from umd_eqx.runs.workspace import claim, default_run_dir, record

KEPT = Path(__file__).parent / "kept" / "config_before_sources.json"


def with_source(source: AbstractSource, **fields):
    config = umd()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, **fields))


def parsed(default: DataConfig, *words: str) -> DataConfig:
    return tyro.cli(tyro.conf.OmitArgPrefixes[DataConfig], default=default, args=words)


def test_the_fields_of_a_source_are_flags_beside_those_of_the_data():
    assert parsed(DataConfig(), "--name", "mnist", "--dir", "there", "--size", "8") == DataConfig(
        source=TFDS("mnist", "there"), size=8
    )
    found = parsed(DataConfig(source=ImageFolder()), "--dir", "photos/pets/", "--channels", "1")
    assert found == DataConfig(source=ImageFolder("photos/pets/", "pets", 1))
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    for cls in SOURCES.values():
        assert not fields & {field.name for field in dataclasses.fields(cls)}


def test_every_type_of_source_can_be_dumped():
    assert set(SOURCES.values()) <= set(TYPES)
    for source in (TFDS("mnist", "there"), ImageFolder("pets", channels=1), ImageFolder()):
        assert load(json.loads(json.dumps(dump(source)))) == source


def test_the_splits_of_tfds_are_told():
    assert set(TFDS().splits()) == {"train", "test"}


def test_where_data_lie_is_not_of_the_run_and_everything_else_is():
    for source in (TFDS("mnist"), ImageFolder("pets")):
        assert run_identity(with_source(source.moved("/elsewhere"))) == run_identity(with_source(source))
        assert source.moved("/elsewhere").moved(source.dir) == source
    for one, other in (
        (TFDS("mnist"), TFDS("emnist")),
        (ImageFolder("pets"), ImageFolder("cars")),
        (ImageFolder("pets"), ImageFolder("pets", channels=1)),
        (TFDS(), ImageFolder("pets")),
    ):
        assert run_identity(with_source(one)) != run_identity(with_source(other))


def test_run_directories_have_the_names_of_flags():
    def name(source: AbstractSource) -> str:
        return str(default_run_dir("umd", with_source(source, train_split="train[:9]", size=8), umd()))

    assert name(TFDS(dir="/data")) == "runs/umd,data.size=8,data.train_split=train-9"
    assert name(TFDS("mnist")) == "runs/umd,data.name=mnist,data.size=8,data.train_split=train-9"
    folder = "data.size=8,data.source=ImageFolder,data.title=pet,data.train_split=train-9"
    assert name(ImageFolder("/data/pet")) == f"runs/umd,{folder}"


def test_another_source_in_the_same_directory_is_told_by_its_flag(tmp_path):
    config = with_source(TFDS("mnist"))
    record(tmp_path, config, "umd", umd())
    assert json.loads((tmp_path / "config.json").read_text())["overrides"] == {"data.name": "mnist"}
    for source, field, was, now in (
        (TFDS(), "data.source.name", "mnist", "fashion_mnist"),
        (ImageFolder("pets"), "data.source", "TFDS", "ImageFolder"),
    ):
        with pytest.raises(BadInput, match=f"was started with {was}, and now it is {now}") as error:
            claim(tmp_path, with_source(source), None)
        assert error.value.field == field


def test_a_configuration_from_before_there_were_sources_is_loaded_and_its_run_continued(tmp_path):
    kept = json.loads(KEPT.read_text())
    assert "source" not in kept["config"]["data"]
    config = load(kept["config"])
    assert config.data.source == TFDS("pictures/small", "/data/tfds")
    assert config.data.train_split == "train[:90%]"
    (tmp_path / "config.json").write_text(KEPT.read_text())
    claim(tmp_path, dataclasses.replace(config, data=config.data.moved(None)), "umd")
    other = dataclasses.replace(config.data, source=TFDS("pictures/large"))
    with pytest.raises(BadInput, match=r"data\.source\.name: .* pictures-small, and now it is pictures-large"):
        claim(tmp_path, dataclasses.replace(config, data=other), "umd")
