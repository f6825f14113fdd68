"""Weights & Biases, present or absent."""

import os
import threading

import numpy as np
import pytest

from umd_eqx.report import Wandb


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
        assert said == ["wandb: metrics are no longer sent (service died)"]

    def test_the_end_is_bounded(self):
        release = threading.Event()

        class Stuck(FakeRun):
            def finish(self, exit_code):
                release.wait()

        said = []
        Wandb(Stuck(), said.append, patience=0.05).finish()
        release.set()
        assert said == ["wandb: sending timed out; `wandb sync` sends the rest"]

    def test_without_a_key_it_is_kept_offline_and_continues(self, clean_wandb, tmp_path):
        for session in range(2):
            said = []
            sink = Wandb.maybe(True, tmp_path, "run", {"lr": 1.0}, "stable-id", notify=said.append)
            assert sink is not None
            assert len(said) == 1
            assert "stored offline" in said[0]
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
        sink = Wandb.maybe(False, tmp_path, "run", {}, "lonely", notify=said.append, timeout=0.5)
        assert sink is not None
        sink.log(1, {"train/loss": 0.5})
        sink.finish()
        assert len(said) == 1
        assert said[0].startswith("wandb: no response; the run is stored offline")
        assert list((tmp_path / "wandb").glob("offline-run-*/run-lonely.wandb"))
        assert capfd.readouterr() == ("", "")
