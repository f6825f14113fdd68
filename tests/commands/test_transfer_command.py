"""`experiments/evaluate.py --benchmark transfer`, on the ten sets in small."""

import json
from pathlib import Path

import pytest
from data.transfer_folder import TEN, write_sets

from umd_eqx.commands.evaluate import evaluate

QUICK = ("--shots", "2", "5", "--seeds", "2", "--batch-size", "16", "--l2", "1")
TRANSFER = ("--benchmark", "transfer")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("ten"))


def test_the_ten_sets_are_measured_printed_and_recorded(called, exported, here, root):
    words = ("--run", exported(), *TRANSFER, "--data.dir", str(root), "--json", "result.json", *QUICK)
    code, out, error = called(evaluate, *words)
    assert (code, error) == (0, "")
    (result,) = json.loads((here / "result.json").read_text())
    assert [each["set"] for each in result["results"]] == list(TEN)
    table = result["table"]
    assert [row[0] for row in table["rows"]] == list(TEN)
    for row in table["rows"]:
        assert any(line.split()[:2] == row[:1] + row[1].split()[:1] for line in out.splitlines()), row
    for each in result["results"]:
        assert {(score["shots"], score["features"]) for score in each["scores"]} == {
            (shots, kind) for shots in (2, 5) for kind in ("class_tokens", "patches", "both")
        }
        for score in each["scores"]:
            assert result["metrics"][f"{each['set']}/{score['shots']}-shot/{score['features']}"] == score["top1"]
            assert (len(score["top1_per_seed"]), 0 <= score["knn"] <= 100) == (2, True)
    assert "oxford_flowers102: 3 classes" in out
    assert "as few as 4 of 5 shots in a class" in out
    assert (result["benchmark"], result["shots"], result["size"]) == ("transfer", [2, 5], 28)
    assert (result["settings"]["seeds"], result["settings"]["l2"]) == (2, 1.0)
    assert len(set(result["metrics"].values())) > 5


def test_a_missing_set_is_a_row_that_says_how_to_get_it(called, exported, here, root):
    for name in ("dtd", "imagenet_v2"):
        (here / name).symlink_to(root / name)
    words = ("--run", exported(), *TRANSFER, "--data-dir", ".", "--sets", "cifar100", "dtd", "imagenet_v2", *QUICK)
    code, out, error = called(evaluate, *words, "--features", "both", "--json", "result.json")
    assert (code, error) == (0, "")
    get = "tfds build cifar100 --file_format=array_record --data_dir ."
    assert f"cifar100 is left out: there is no cifar100 in .. Get it by `{get}`" in out
    assert "cifar100: not measured" in out
    assert "the shots of imagenet_v2 are training images of imagenet2012, and there is no imagenet2012 in ." in out
    (result,) = json.loads((here / "result.json").read_text())
    assert ["problem" in each for each in result["results"]] == [True, False, True]
    assert result["table"]["rows"][0] == ["cifar100", "-", "-"]
    assert {name.split("/")[0] for name in result["metrics"]} == {"dtd"}


def test_what_cannot_be_is_told_in_one_line(called, exported, here, root, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    (here / "empty").mkdir()
    (here / "file").write_text("")
    (here / "torn" / "dtd" / "1.0.0").mkdir(parents=True)
    (here / "torn" / "dtd" / "1.0.0" / "dataset_info.json").write_text("{")
    file = exported()
    for words, said in (
        ((), "--data.dir: the folder of the data sets is missing"),
        (("--data.dir", "nowhere"), "--data.dir: there is no folder nowhere"),
        (("--data.dir", "file"), "--data.dir: file is not a folder"),
        (("--data.dir", "empty"), "--data.dir: empty contains none of the data sets (imagenet2012, cifar100"),
        (("--data.dir", "torn", "--sets", "dtd"), "--data.dir: no data set could be measured; the first problem:"),
        (("--data.dir", str(root), "--sets", "cifar-100"), "Did you mean cifar100? Choose among imagenet2012, "),
        (("--data.dir", str(root), "--sets"), "--sets: no data set is given"),
        (("--data.dir", str(root), "--shots", "0"), "--shots: 0 is not valid"),
        (("--data.dir", str(root), "--shots"), "--shots: none is not valid"),
        (("--data.dir", str(root), "--seeds", "0"), "--seeds: 0 is not valid"),
        (("--data.dir", str(root), "--batch-size", "0"), "--batch-size: 0 is not"),
        (("--data.dir", str(root), "--seed", "-1"), "--seed: -1 is outside"),
        (("--data.dir", str(root), "--json", "nowhere/x.json"), "--json: there is no folder"),
        (("--data.dir", str(root), "--run", "nowhere"), "--run: there is no nowhere"),
    ):
        code, _, error = called(evaluate, "--run", file, *TRANSFER, *words)
        assert code == 2, words
        assert len(error.splitlines()) == 1
        assert said in error


def test_the_folder_of_tfds_is_the_default(called, exported, root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    code, out, _ = called(evaluate, "--run", exported(), *TRANSFER, "--sets", "stl10", *QUICK, "--features", "both")
    assert code == 0
    assert "stl10: 2 shots " in out
