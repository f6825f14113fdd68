"""The sinks: nothing is lost or doubled at a resumption, and nothing outside can disturb a training."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from umd_eqx.core.errors import BadInput
from umd_eqx.report import MetricsFile, read_metrics, results_table, save_pictures


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def fill(path, steps):
    with MetricsFile.open(path) as metrics:
        for step in steps:
            metrics.append(step, {"train/loss": step / 10})


def steps_of(path):
    return [row["step"] for row in read_metrics(path)]


class TestMetrics:
    def test_rows_come_back_as_written(self, path):
        with MetricsFile.open(path) as metrics:
            metrics.append(0, {"eval/a": 1})
            metrics.append(10, {"train/loss": np.float32(0.5), "count": np.int64(3)})
        assert path.read_text() == '{"step": 0, "eval/a": 1}\n{"step": 10, "train/loss": 0.5, "count": 3}\n'
        assert read_metrics(path) == [{"step": 0, "eval/a": 1}, {"step": 10, "train/loss": 0.5, "count": 3}]

    def test_a_line_is_on_the_disk_before_the_next_begins(self, path):
        with MetricsFile.open(path) as metrics:
            metrics.append(1, {"a": 1})
            assert steps_of(path) == [1]

    def test_not_finite_is_null_and_the_file_strict_json(self, path):
        with MetricsFile.open(path) as metrics:
            metrics.append(1, {"a": math.nan, "b": math.inf, "c": -np.float32(np.inf)})
        row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
        assert row == {"step": 1, "a": None, "b": None, "c": None}

    def test_resuming_drops_what_will_be_done_again(self, path):
        fill(path, [10, 20, 30, 40])
        with MetricsFile.open(path, resume_step=20) as metrics:
            assert steps_of(path) == [10, 20]
            metrics.append(30, {"train/loss": 7.0})
        assert [row["train/loss"] for row in read_metrics(path)] == [1.0, 2.0, 7.0]

    def test_resuming_leaves_no_other_file(self, path):
        fill(path, [10])
        MetricsFile.open(path, resume_step=10).close()
        assert [other.name for other in path.parent.iterdir()] == ["metrics.jsonl"]

    def test_starting_again_drops_all(self, path):
        fill(path, [10, 20])
        MetricsFile.open(path).close()
        assert read_metrics(path) == []

    @pytest.mark.parametrize("torn", [b'{"step": 30, "tr', b"{", b"\0\0\0", b"\xff\xfe", b"3", b'{"step": 30'])
    def test_a_torn_last_line_is_dropped(self, path, torn):
        fill(path, [10, 20])
        with path.open("ab") as file:
            file.write(torn)
        assert steps_of(path) == [10, 20]
        with MetricsFile.open(path, resume_step=50) as metrics:
            metrics.append(30, {})
        assert steps_of(path) == [10, 20, 30]

    def test_a_line_that_lacks_only_its_end_of_line_is_whole(self, path):
        path.write_text('{"step": 10}\n{"step": 20}')
        with MetricsFile.open(path, resume_step=20) as metrics:
            metrics.append(30, {})
        assert steps_of(path) == [10, 20, 30]

    def test_a_corrupt_line_before_the_last_is_refused_by_number(self, path):
        path.write_text('{"step": 10}\nnonsense\n{"step": 20}\n')
        with pytest.raises(BadInput, match="line 2"):
            read_metrics(path)

    @pytest.mark.parametrize("step", [20, 10])
    @pytest.mark.parametrize("resumed", [False, True])
    def test_each_step_once(self, path, step, resumed):
        fill(path, [10, 20])
        metrics = MetricsFile.open(path, resume_step=20) if resumed else MetricsFile.open(path)
        with metrics:
            if not resumed:
                metrics.append(20, {})
            with pytest.raises(ValueError, match="each step is written once"):
                metrics.append(step, {})

    def test_the_name_step_is_taken(self, path):
        with MetricsFile.open(path) as metrics, pytest.raises(ValueError, match="named 'step'"):
            metrics.append(1, {"step": 2})

    def test_a_missing_file_has_no_rows(self, path):
        assert read_metrics(path) == []


class TestPictures:
    @pytest.mark.parametrize(("width", "scale"), [(40, 4), (130, 4), (250, 2), (499, 2), (500, 1), (900, 1)])
    def test_small_ones_are_enlarged_by_a_whole_number(self, tmp_path, width, scale):
        image = np.random.default_rng(0).integers(0, 256, (6, width, 3), np.uint8)
        (path,) = save_pictures(tmp_path, 70, {"eval/reconstruction/raw": image})
        assert path == tmp_path / "pictures" / "eval-reconstruction-raw" / "00000070.png"
        with Image.open(path) as file:
            saved = np.asarray(file)
        assert saved.shape == (6 * scale, width * scale, 3)
        assert np.array_equal(saved[::scale, ::scale], image)

    @pytest.mark.parametrize("name", ["", "..", "/", "a\\b", "a\0b"])
    def test_a_name_that_is_no_folder_is_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match="is not a valid name of a picture"):
            save_pictures(tmp_path, 1, {name: np.zeros((2, 2, 3), np.uint8)})


def test_results_table():
    rows = [
        {"step": 0, "eval/fewshot/raw_pixels/top1": 0.75, "eval/fid": 200.0},
        {"step": 10, "train/loss": 1.0, "eval/fid": None},
        {"step": 20, "eval/fewshot/both/knn": 0.8125},
    ]
    assert results_table(rows).splitlines() == [
        "evaluation                value  step",
        "fewshot/both/knn         0.8125    20",
        "fewshot/raw_pixels/top1    0.75     0",
        "fid                         nan    10",
    ]
    assert results_table([{"step": 1, "train/loss": 1.0}]) == "no evaluation yet"
    # A headline comes first and is named, so that no other number is taken for it.
    assert results_table(rows, ["eval/fewshot/raw_pixels/top1"]).splitlines() == [
        "evaluation                value  step",
        "fewshot/raw_pixels/top1    0.75     0  headline",
        "fewshot/both/knn         0.8125    20",
        "fid                         nan    10",
    ]


def test_the_import_is_cheap():
    program = (
        "import sys, umd_eqx.report as _; print(sorted({'wandb', 'matplotlib', 'PIL', 'rich'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "UMD_EQX_TYPECHECK"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "[]\n"
