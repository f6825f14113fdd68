"""The lines and the bar of a run."""

import io
import os
import subprocess
import sys

import pytest

from umd_eqx.report import Terminal


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
            terminal.print("[bold]as it is[/bold]")
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
            terminal.print("[said]")
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
                terminal.print("said")

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
            terminal.print("loss → 0")
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
