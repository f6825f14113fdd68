"""The benchmark of input pipelines, for moments: its JSON output is a stable interface."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umd_eqx.core.errors import BadInput

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["--seconds", "0.2", "--rounds", "1", "--images", "4", "--batch", "2", "--workers", "1", "--size", "16"]


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    return load("data")


def test_rows_have_speeds_and_ratios_to_the_first(data, tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    chosen = data.pipelines

    def fewer(options):  # in this environment, and without processes, which take seconds to start
        return [p for p in chosen(options) if p.title.startswith("Pillow") or "fast, threads" in p.title][:2]

    monkeypatch.setattr(data, "pipelines", fewer)
    assert data.main([*TINY, "--memory-seconds", "0.2", "--json", str(file)]) == 0
    pillow, fast, memory = json.loads(file.read_text())
    assert pillow["pipeline"] == "Pillow, one thread"
    assert pillow["ratio"] == 1
    assert fast["pipeline"].startswith("fast, threads")
    assert fast["images_per_s"] == pytest.approx(fast["images"] / fast["cpu_seconds"])
    assert fast["ratio"] == pytest.approx(fast["images_per_s"] / pillow["images_per_s"])
    assert memory["batches"] > 0
    assert np.isfinite(memory["kb_per_1000_batches"])
    said = capsys.readouterr().out
    assert "| Pillow, one thread | " in said
    assert "KB per 1,000 batches" in said


def test_every_way_of_ours_is_among_the_pipelines(data):
    titles = [pipeline.title for pipeline in data.pipelines(data.Options(tf_python="/tf", torch_python="/torch"))]
    assert titles[0] == "tf.data"
    ours = ("exact, threads", "exact, processes", "fast, threads", "fast, processes")
    for start in ("Pillow", "PyTorch DataLoader", *ours):
        assert any(title.startswith(start) for title in titles)
    assert data.pipelines(data.Options())[0].title in ("tf.data", "Pillow, one thread")


def test_the_images_are_jpegs_of_a_hundred_kilobytes(data, tmp_path):
    size = data.write_images(tmp_path, 4)
    assert 80_000 < size < 120_000
    first, *others = sorted((tmp_path / "images").iterdir())
    assert len(others) == 3
    with Image.open(first) as image:
        assert (image.format, sorted(image.size)) == ("JPEG", [375, 500])


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--seconds", "0"], "seconds"),
        (["--area-min", "100"], "area_min"),
        (["--memory-seconds", "-1"], "memory_seconds"),
        (["--tf-python", "/nowhere/python"], "tf_python"),
        (["--json", "/nowhere/rows.json"], "json"),
    ],
)
def test_what_cannot_be_measured_is_refused(data, words, field):
    with pytest.raises(BadInput) as error:
        data.main([*TINY, *words])
    assert error.value.field == field


def test_an_environment_without_tensorflow_is_told_in_one_line(data, tmp_path):
    data.write_images(tmp_path, 1)
    wrong = data.Pipeline("tf.data", sys.executable, ("tf.data",))
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
    with pytest.raises(BadInput, match=r"the pipeline tf.data failed .*tensorflow") as error:
        data.run_one(wrong, tmp_path, data.Options(), 0.1, 1)
    assert error.value.field == "tf_python"
    assert "\n" not in str(error.value)


def test_the_time_of_running_children_is_counted():
    pipelines = load("data_pipelines")
    before, began = pipelines.cpu_seconds(), time.process_time()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while pipelines.cpu_seconds() - before < 0.3:
            time.sleep(0.05)
        assert time.process_time() - began < 0.2  # it was not this process
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
