"""Encoding in processes of their own that are killed: what is left at the end is what no accident would have left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import ended, let_go, read_until, wait_until_held

COMMAND = Path(__file__).parent / "slow_encode.py"
# Four shards of three batches.
FLAGS = ("--tokenizer", "fashion-kl", "--views", "2", "--data.area-min", "80", "--data.flip", "--limit", "92")
BATCHES = ("--per-shard", "24", "--batch-size", "16")


def start(
    folder: Path, *flags: str, seconds_a_batch: float = 0.0, hold_after: int | None = None
) -> subprocess.Popen[str]:
    """The command in a process of its own, with one device; held within a batch as `faults.tiny.start` holds a run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "SECONDS_A_STEP": str(seconds_a_batch),
        "HOLD_AFTER": "" if hold_after is None else str(hold_after),
        "HOLD": str(folder),
    }
    for mark in (".held", ".go"):
        Path(f"{folder}{mark}").unlink(missing_ok=True)
    words = [sys.executable, str(COMMAND), *FLAGS, *BATCHES, "--out", str(folder), *flags]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tmp"}


def test_killed_and_stopped_and_begun_again_it_leaves_the_same_bytes(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "latents"
    uninterrupted = start(whole)  # beside the other, to take half the time
    process = start(folder, hold_after=4)  # in the second batch of the second shard
    wait_until_held(process, folder)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    first = (folder / "latents-00000-of-00004.array_record").stat().st_mtime_ns

    process = start(folder, hold_after=4)
    wait_until_held(process, folder)
    process.send_signal(signal.SIGTERM)
    assert "24 images are already encoded" in read_until(process, "warning: SIGTERM: stopping after this batch")
    let_go(folder)
    code, out, error = ended(process)
    assert (code, error) == (75, "")
    assert out.endswith("stopped by SIGTERM: complete shards are kept. The same command resumes it\n")
    assert not (folder / "manifest.json").exists()

    code, out, error = ended(start(folder, "--json", str(tmp_path / "figures.json")))
    assert (code, error) == (0, "")
    assert "48 images are already encoded" in out
    code, _, error = ended(uninterrupted)
    assert (code, error) == (0, "")
    assert len(content(whole)) == 4 + 4 + 3  # shards, what is said of each, settings, manifest and lock
    assert content(folder) == content(whole)
    assert (folder / "latents-00000-of-00004.array_record").stat().st_mtime_ns == first  # left as it was
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["encoded"], figures["views"]) == (92, 44, 2)
    assert figures["views_per_s"] == pytest.approx(88 / figures["seconds"])


@pytest.mark.slow
def test_killed_at_random_moments_it_leaves_the_same_bytes(tmp_path):
    # While importing, compiling, encoding, writing a shard or the manifest.
    whole, folder, rng = tmp_path / "whole", tmp_path / "latents", np.random.default_rng(0)
    assert ended(start(whole))[0] == 0
    for _ in range(12):
        process = start(folder, seconds_a_batch=0.05)
        try:
            assert ended(process, rng.uniform(1.0, 6.0))[0] == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            ended(process)
    assert ended(start(folder))[0] == 0
    assert content(folder) == content(whole)
