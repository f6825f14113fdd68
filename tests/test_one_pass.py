"""A command opens no file twice: what it reads is read at its edge and handed on."""

import collections
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.tiny import cache_dir

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests/tiny_latents.py"
PACKAGE = (ROOT / "umd_eqx/weights", ROOT / "umd_eqx/data/embedded")

SAMPLING = ("--steps", "2", "--batch-size", "8")
PROBING = ("--shots", "1", "--seeds", "1", "--knn", "1", "--test-images", "16", "--pool", "500", "--batch-size", "8")


def excluded(path: Path) -> str | None:
    """Why a file may be opened more than once; None where it may not.

    Python sources and caches lie outside the folders that are watched, and so does what a command only writes.
    """
    if "checkpoints" in path.parts and path.name != "crc32.json":
        return "compared with its checksum, and then read by orbax, which looks into its own metadata several times"
    if "pictures" in path.parts:
        return "a page embeds the pictures of all its run, and is written anew after each evaluation"
    if "embedded" in path.parts and (".array_record" in path.name or path.name == "features.json"):
        return "the fingerprint of the images is computed from it, and then TFDS or array_record opens it"
    if path.name == ".lock":
        return "it is looked at again before each row: another process, or nobody, may hold it by then"
    if path.name.startswith("latents-") and ".array_record" in path.name:
        return "compared with its checksum, and then opened by array_record"
    if path.name == "dataset_info.json":
        return "its format is checked, and then TFDS reads it twice"
    return None


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Callable[..., collections.Counter[Path]]:
    """`opened(script, *words)`: how often a command opened each file for reading, run in one folder for all."""
    folder = tmp_path_factory.mktemp("one_pass")

    def run(script: Path, *words: str) -> collections.Counter[Path]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_", "UMD_"))}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": cache_dir(),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        report, roots = folder / "opened.json", os.pathsep.join(map(str, (folder / "runs", *PACKAGE)))
        command = [sys.executable, str(ROOT / "tests/opened.py"), str(report), roots, str(script), *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(report.read_text())
        report.unlink()
        return collections.Counter({Path(name): count for name, count in found.items()})

    return run


def test_no_command_opens_a_file_twice(opened):
    # In one test, because each command goes on with what the one before left.
    commands = {
        "pretrain": (TINY, "pretrain", "--run-dir", "runs/latent"),
        "pretrain, again": (TINY, "pretrain", "--run-dir", "runs/latent"),
        "finetune": (TINY, "finetune", "--from", "runs/latent"),
        "sample": (ROOT / "experiments/sample.py", "--run", "runs/latent-ft", "--num", "4", *SAMPLING),
        "evaluate": (ROOT / "experiments/evaluate.py", "--run", "runs/latent-ft", "--samples", "10", *SAMPLING),
        "probe": (ROOT / "experiments/evaluate.py", "--benchmark", "probe", "--run", "runs/latent-ft", *PROBING),
    }
    read, twice = {}, {}
    for name, words in commands.items():
        found = read[name] = opened(*words)
        for path, count in found.items():
            if count > 1 and excluded(path) is None:
                twice[name, str(path)] = count
    assert twice == {}

    def names(command: str) -> set[str]:
        return {path.name for path in read[command]}

    # That nothing was opened twice says something only where files were seen to be opened.
    assert {"fashion-kl.safetensors", "fashion-kl.json", "features.json"} <= names("pretrain")
    assert {"config.json", "environment.json", "metrics.jsonl", "fashion-kl.safetensors"} <= names("pretrain, again")
    assert {"config.json", "environment.json", "crc32.json", "fashion-kl.safetensors"} <= names("finetune")
    assert {"config.json", "environment.json", "crc32.json", "fashion-kl.safetensors"} <= names("sample")
    assert {"fashion_classifier.safetensors", "crc32.json", "features.json"} <= names("evaluate")
    assert {"config.json", "environment.json", "crc32.json", "features.json"} <= names("probe")
    for command in ("evaluate", "probe"):
        assert any("array_record" in name for name in names(command))
