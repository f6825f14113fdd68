"""Signals to programs that are not in training: while they import libraries, sample, and encode latents."""

import signal
import time
from pathlib import Path

from faults.suite.base import Outcome
from faults.suite.runs import made_once
from faults.test_encoding_kill import content
from faults.test_encoding_kill import start as start_encoding
from faults.test_interrupts import SITE, read_until, started
from faults.tiny import PATIENCE, cache_dir, ended, let_go, wait_until_held

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""Those of programs with nothing to save."""


def import_libraries(number: int, folder: Path) -> Outcome:
    """Signals the training command in the middle of an import, which is never over."""
    (folder / "sitecustomize.py").write_text(SITE)
    process = started("pretrain.py", "--run-dir", "run", folder=folder, HOLD_IMPORT="jax")
    assert process.stdout is not None
    read_until(process, process.stdout.fileno(), b"held\n")
    began = time.monotonic()
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1].decode()
    figures = {"seconds": round(time.monotonic() - began, 2), "steps_lost": 0}
    good = process.returncode == EXIT_CODES[signal.Signals(number)] and "Traceback" not in error
    good = good and not (folder / "run").exists()
    return Outcome(good, f"exit code {process.returncode}, nothing started", figures)


def sample(number: int, folder: Path, *, compiling: bool) -> Outcome:
    """Signals the sampling command while it compiles, with nothing cached, or in the batches of images after that."""
    words = ("--num", "400" if not compiling else "4", "--batch-size", "4")
    variables = {"JAX_LOG_COMPILES": "1"}
    if not compiling:
        variables |= {"JAX_COMPILATION_CACHE_DIR": cache_dir(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    process = started("sample.py", *words, folder=folder, **variables)
    assert process.stderr is not None
    what = b"conversion" if compiling else b"Finished XLA compilation of"
    read_until(process, process.stderr.fileno(), what + b" jit(sample_batch)")
    if not compiling:
        time.sleep(1.0)
    assert process.poll() is None, "the samples were finished before the signal"
    began = time.monotonic()
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1].decode()
    figures = {"seconds": round(time.monotonic() - began, 2), "steps_lost": 0}
    left = [path.name for path in folder.iterdir()]
    good = process.returncode == EXIT_CODES[signal.Signals(number)] and "Traceback" not in error and not left
    return Outcome(good, f"exit code {process.returncode}, {', '.join(left) or 'nothing'} left", figures)


def encode_all(latents: Path) -> None:
    code, _, error = ended(start_encoding(latents))
    assert (code, error) == (0, ""), error


def encode(number: int, batch: int, folder: Path) -> Outcome:
    """Signals the encoding of latents in a batch, lets the same command finish it, and compares all bytes."""
    whole, latents = made_once(folder.parents[1], "latents", encode_all), folder / "latents"
    process = start_encoding(latents, hold_after=batch)
    wait_until_held(process, latents)
    began = time.monotonic()
    process.send_signal(number)
    time.sleep(0.3)
    let_go(latents)
    code, _, error = ended(process)
    figures = {"seconds": round(time.monotonic() - began, 2), "steps_lost": 0}
    if (code, error) != (75, ""):
        return Outcome(False, f"exit code {code}: {error.strip()[-200:]}", figures)
    shards = len([*latents.glob("*.array_record")])
    code, _, error = ended(start_encoding(latents))
    same = (code, error) == (0, "") and content(latents) == content(whole)
    return Outcome(same, f"{shards} complete shards kept, then {'the same' if same else 'other'} bytes", figures)
