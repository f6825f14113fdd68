"""The sinks: nothing is lost or doubled at a resumption, and nothing outside can disturb a training."""

import io
import json
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from umd_eqx.errors import BadInput
from umd_eqx.report import MetricsFile, Terminal, Wandb, read_metrics, results_table, save_pictures


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


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


ROW = {
    "train/loss": 0.1234,
    "throughput/images_per_s": 812.3,
    "throughput/mfu": 0.412,
    "throughput/data_wait": 0.004,
}


class TestTerminal:
    def test_plain_lines_come_at_once_then_at_intervals_then_at_the_end(self):
        out, clock = io.StringIO(), Clock()
        with Terminal(10, stream=out, clock=clock) as terminal:
            for step in range(1, 11):
                clock.now += 4.0
                terminal.update(step, ROW)
        lines = out.getvalue().splitlines()
        assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "10/10"]
        assert lines[1] == "step 4/10  loss 0.1234  812 images/s  mfu 0.41  wait 0%  eta 24s"
        assert "\x1b" not in out.getvalue()

    def test_leaving_early_says_the_last_step(self):
        out, clock = io.StringIO(), Clock()
        with Terminal(10, stream=out, clock=clock) as terminal:
            terminal.update(1, {})
            terminal.update(2, {"train/loss": 1.0})
        assert out.getvalue() == "step 1/10  eta 0s\nstep 2/10  loss 1.0000  eta 0s\n"

    def test_the_time_left_knows_no_pauses(self):
        out, clock = io.StringIO(), Clock()
        with Terminal(100, start=50, stream=out, interval=0.0, clock=clock) as terminal:
            terminal.phase("compiling")
            clock.now += 1000
            terminal.update(51, {})  # comes out of a pause: tells nothing of the pace
            clock.now += 2
            terminal.update(52, {})
            terminal.phase("evaluating fewshot", step=53)
            clock.now += 1000
            terminal.phase("training")
            clock.now += 2
            terminal.update(53, {})
        assert out.getvalue().splitlines() == [
            "step 50/100  compiling",
            "step 51/100",
            "step 52/100  eta 1m36s",
            "step 53/100  evaluating fewshot",
            "step 53/100  eta 1m34s",
        ]

    def test_the_time_left_survives_a_stall(self):
        out, clock = io.StringIO(), Clock()
        with Terminal(100, stream=out, interval=0.0, clock=clock) as terminal:
            for step in range(1, 11):
                clock.now += 500 if step == 5 else 1
                terminal.update(step, {})
        assert out.getvalue().splitlines()[-1] == "step 10/100  eta 1m30s"

    def test_lines_said(self):
        out = io.StringIO()
        with Terminal(10, stream=out) as terminal:
            terminal.say("[bold]as it is[/bold]")
            terminal.warn("careful")
        assert out.getvalue() == "[bold]as it is[/bold]\nwarning: careful\n"

    @pytest.mark.parametrize("width", [20, 50, 140])
    def test_the_bar_shows_what_there_is_room_for(self, width, monkeypatch):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("NO_COLOR", "1")
        out, clock = io.StringIO(), Clock()
        with Terminal(7000, stream=out, interactive=True, clock=clock) as terminal:
            terminal.phase("compiling")
            terminal.update(1199, ROW)
            clock.now += 1
            terminal.say("[said]")
            terminal.update(1200, ROW)
        last = out.getvalue().splitlines()[-2]  # after it only the cursor comes back
        assert "[said]" in out.getvalue()
        assert ("images/s" in last) == (width == 140)
        assert ("loss 0.1234" in last) == (width >= 50)
        assert "\x1b[3" not in out.getvalue()  # no colour

    def test_stdout_is_itself_again_after_the_bar(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        before = sys.stdout, sys.stderr
        with pytest.raises(KeyError), Terminal(10, stream=io.StringIO(), interactive=True):
            raise KeyError
        assert (sys.stdout, sys.stderr) == before

    @pytest.mark.parametrize("interactive", [False, True])
    @pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
    def test_a_stream_that_breaks_is_given_up(self, interactive, error):
        class Broken(io.StringIO):
            def write(self, text):
                raise error

        with Terminal(10, stream=Broken(), interactive=interactive, interval=0.0) as terminal:
            terminal.phase("compiling")
            for step in range(1, 11):
                terminal.update(step, ROW)
                terminal.say("said")

    def test_a_closed_or_missing_stdout(self, monkeypatch):
        closed = io.StringIO()
        closed.close()
        for stdout in (closed, None):
            monkeypatch.setattr(sys, "stdout", stdout)
            with Terminal(10) as terminal:
                terminal.update(10, ROW)

    def test_characters_the_stream_does_not_know(self):
        raw = io.BytesIO()
        with Terminal(10, stream=io.TextIOWrapper(raw, encoding="ascii")) as terminal:
            terminal.say("loss → 0")
        assert raw.getvalue() == b"loss ? 0\n"

    def test_a_reader_that_goes_away_does_not_change_the_exit_status(self):
        program = (
            "from umd_eqx.report.terminal import Terminal\n"
            "with Terminal(20000, interval=0.0) as terminal:\n"
            "    for step in range(20000): terminal.update(step, {'train/loss': 1.0})\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "UMD_EQX_TYPECHECK"}
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=60), errors) == (0, b"")


class FakeRun:
    """Stands for wandb's run: breaks on request."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def log(self, row, step):
        self.calls.append((step, row))
        if self.error:
            raise self.error

    def finish(self, exit_code):
        self.calls.append(exit_code)
        if self.error:
            raise self.error


@pytest.fixture
def clean_wandb(monkeypatch, tmp_path):
    """No key, no stored login and no settings but the test's own."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return monkeypatch


class TestWandb:
    def test_off_unless_wanted(self, clean_wandb, tmp_path):
        assert Wandb.maybe(False, tmp_path, "run", {}, "id") is None
        clean_wandb.setenv("WANDB_MODE", "disabled")
        assert Wandb.maybe(True, tmp_path, "run", {}, "id") is None
        assert not (tmp_path / "wandb").exists()

    def test_numbers_and_the_end_are_passed_on(self):
        run = FakeRun()
        sink = Wandb(run, pytest.fail)
        sink.log(3, {"train/loss": np.float32(0.5)})
        sink.finish(failed=True)
        assert run.calls == [(3, {"train/loss": 0.5}), 1]

    def test_one_complaint_then_silence(self):
        said = []
        sink = Wandb(FakeRun(RuntimeError("service died\ndetails")), said.append)
        sink.log(1, {"a": 1.0})
        sink.log(2, {"a": 1.0})
        sink.images(2, {"a": np.zeros((2, 2, 3), np.uint8)})
        sink.finish()
        assert said == ["wandb: numbers are no longer sent (service died)"]

    def test_the_end_is_bounded(self):
        release = threading.Event()

        class Stuck(FakeRun):
            def finish(self, exit_code):
                release.wait()

        said = []
        Wandb(Stuck(), said.append, patience=0.05).finish()
        release.set()
        assert said == ["wandb: not everything was sent in time; `wandb sync` sends the rest"]

    def test_without_a_key_it_is_kept_offline_and_continues(self, clean_wandb, tmp_path):
        for session in range(2):
            said = []
            sink = Wandb.maybe(True, tmp_path, "run", {"lr": 1.0}, "stable-id", say=said.append)
            assert sink is not None
            assert len(said) == 1
            assert "kept offline" in said[0]
            sink.log(session, {"train/loss": 0.5})
            sink.images(session, {"eval/picture": np.zeros((4, 4, 3), np.uint8)})
            sink.finish()
            assert len(said) == 1
        files = list((tmp_path / "wandb").glob("offline-run-*/run-stable-id.wandb"))
        assert files

    def test_a_server_that_does_not_answer(self, clean_wandb, tmp_path, capfd):
        clean_wandb.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # "discard": nothing listens there
        clean_wandb.setenv("WANDB_API_KEY", "0" * 40)
        clean_wandb.setenv("WANDB_MODE", "online")
        said = []
        sink = Wandb.maybe(False, tmp_path, "run", {}, "lonely", say=said.append, timeout=0.5)
        assert sink is not None
        sink.log(1, {"train/loss": 0.5})
        sink.finish()
        assert len(said) == 1
        assert said[0].startswith("wandb: no answer, so the run is kept offline")
        assert list((tmp_path / "wandb").glob("offline-run-*/run-lonely.wandb"))
        assert capfd.readouterr() == ("", "")


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
        with pytest.raises(ValueError, match="cannot name a picture"):
            save_pictures(tmp_path, 1, {name: np.zeros((2, 2, 3), np.uint8)})


def test_results_table():
    rows = [
        {"step": 0, "eval/fewshot/raw_pixels/top1": 0.75, "eval/fid": 200.0},
        {"step": 10, "train/loss": 1.0, "eval/fid": None},
        {"step": 20, "eval/knn/both/top1": 0.8125},
    ]
    assert results_table(rows).splitlines() == [
        "evaluation                value  step",
        "fewshot/raw_pixels/top1    0.75     0",
        "fid                         nan    10",
        "knn/both/top1            0.8125    20",
    ]
    assert results_table([{"step": 1, "train/loss": 1.0}]) == "no evaluation yet"


def test_the_import_is_cheap():
    program = (
        "import sys, umd_eqx.report as _; print(sorted({'wandb', 'matplotlib', 'PIL', 'rich'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "UMD_EQX_TYPECHECK"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "[]\n"
