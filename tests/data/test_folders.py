import json
import shutil

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.data.folders import find_dataset, holds_tfds


@pytest.fixture
def root(tmp_path):
    """A TFDS root with two versions of `some`, one of `two/a` and `two/b`, and one in the wrong format."""

    def put(folder, name, config=None, file_format="array_record"):
        (tmp_path / folder).mkdir(parents=True)
        info = {"name": name, "configName": config, "fileFormat": file_format}
        (tmp_path / folder / "dataset_info.json").write_text(json.dumps(info))

    put("some/1.9.0", "some")
    put("some/1.10.0", "some")
    (tmp_path / "some/2.0.0").mkdir()  # never finished
    put("two/a/1.0.0", "two", "a")
    put("two/b/1.0.0", "two", "b")
    put("records/1.0.0", "records", file_format="riegeli")
    put("old/1.0.0", "old", file_format="tfrecord")
    (tmp_path / "old/1.0.0/dataset_info.json").write_text('{"name": "old"}')
    put("odd/1.0.0", "odd")
    (tmp_path / "odd/1.0.0/dataset_info.json").write_text("no json")
    return tmp_path


def refused(name, data_dir, field):
    with pytest.raises(BadInput) as error:
        find_dataset(name, None if data_dir is None else str(data_dir))
    assert error.value.field == field
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_highest_version_is_found(root):
    assert find_dataset("some", str(root)) == root / "some/1.10.0"
    assert find_dataset("two/a", str(root)) == root / "two/a/1.0.0"


def test_the_data_sets_own_folder_and_one_version_may_be_given(root):
    assert find_dataset("some", str(root / "some")) == root / "some/1.10.0"
    assert find_dataset("some", str(root / "some/1.9.0")) == root / "some/1.9.0"
    assert find_dataset("two/b", str(root / "two/b")) == root / "two/b/1.0.0"


def test_a_folder_of_another_data_set_is_refused(root):
    assert "Use `data.source.name=two/a`" in refused("fashion_mnist", root / "two/a/1.0.0", "data.source.name")


def test_the_environment_comes_before_what_is_embedded(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert find_dataset("some", None) == root / "some/1.10.0"
    assert "embedded" in str(find_dataset("fashion_mnist", None))
    shutil.copytree(root / "some/1.9.0", root / "fashion_mnist/1.0.0")
    assert find_dataset("fashion_mnist", None) == root / "fashion_mnist/1.0.0"
    assert str(root) in refused("nothing", None, "data.source.dir")


def test_an_unknown_name_says_what_is_embedded(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert "fashion_mnist" in refused("imagenet2012", None, "data.source.dir")
    refused("", None, "data.source.name")
    refused("../x", None, "data.source.name")


def test_missing_and_empty_folders(root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there is no folder" in refused("some", tmp_path / "missing", "data.source.dir")
    assert "it is empty" in refused("some", tmp_path / "empty", "data.source.dir")
    assert "it contains odd, old" in refused("other", root, "data.source.dir").replace("empty, ", "")


def test_a_missing_config_lists_the_configs(root):
    assert "(a, b)" in refused("two", root, "data.source.name")


def test_other_formats_than_array_record_and_tfrecord_are_refused(root, monkeypatch):
    for folder in (root, root / "records" / "1.0.0"):
        message = refused("records", folder, "data.source.dir")
        assert "is in riegeli format, and only array_record and tfrecord are supported" in message
        assert "--file_format=array_record" in message
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert "riegeli" in refused("records", None, "data.source.dir")


def test_data_that_state_no_format_are_tfrecord(root):
    assert find_dataset("old", str(root)) == root / "old/1.0.0"


def test_tfds_data_are_found_below_a_folder(root, tmp_path):
    for folder in (root, root / "some", root / "some/1.9.0", root / "two"):
        assert holds_tfds(str(folder))
    (tmp_path / "images" / "class").mkdir(parents=True)
    assert not holds_tfds(str(tmp_path / "images"))
    assert not holds_tfds(str(tmp_path / "missing"))


def test_a_broken_description_is_refused(root):
    refused("odd", root, "data.source.dir")
