"""Copies of checkpoints at a URL, made in the background and fetched."""

import io
import json
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from umd_eqx.core.remote import Remote
from umd_eqx.training import mirroring
from umd_eqx.training.mirror import Damaged, Mirror, link_tree, pack, unpack
from umd_eqx.training.mirroring import Mirroring

URL = "memory://mirror/run"
FILES = fsspec.filesystem("memory")
ROOT = "/mirror/run"


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    yield
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]


@pytest.fixture
def mirror() -> Mirror:
    return Mirror(Remote(URL, "checkpoint.mirror"))


def checkpoint(run_dir: Path, step: int) -> Path:
    """A sealed checkpoint, as the module of checkpoints writes it, and the files of its run."""
    folder = run_dir / "checkpoints" / str(step)
    files = {"_METADATA": b"{}", "state/d/1": bytes(range(200)), "state/manifest": f"step {step}".encode()}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sums = {name: zlib.crc32(data) for name, data in files.items()}
    (folder / "crc32.json").write_text(json.dumps({"step": step, "files": sums}))
    (run_dir / "config.json").write_text("{}")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    return folder


def put(mirror: Mirror, run_dir: Path, step: int) -> None:
    mirror.put(step, checkpoint(run_dir, step), pack(run_dir, step))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_checkpoint_comes_back_with_the_files_of_its_run(mirror, tmp_path):
    (tmp_path / "pictures" / "denoising").mkdir(parents=True)
    (tmp_path / "pictures" / "denoising" / "4.png").write_bytes(b"png")
    (tmp_path / "pictures" / "denoising" / "5.png.tmp").write_bytes(b"half")
    put(mirror, tmp_path, 4)
    mirror.fetch(4, tmp_path / "fetched", lambda sizes: None)
    assert content(tmp_path / "fetched") == content(tmp_path / "checkpoints" / "4")
    assert mirror.run_files(4) == {
        "config.json": b"{}",
        "metrics.jsonl": b'{"step": 4}\n',
        "pictures/denoising/4.png": b"png",
    }
    assert pack(tmp_path, 4) == pack(tmp_path, 4)


def test_every_interruption_of_an_upload_leaves_nothing_that_counts(mirror, tmp_path, monkeypatch):
    put(mirror, tmp_path, 4)
    new = checkpoint(tmp_path, 6)
    left = 0

    def interrupted(method):
        def call(self, *given):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return method(self, *given)

        return call

    for name in ("upload", "write", "delete"):
        monkeypatch.setattr(Remote, name, interrupted(getattr(Remote, name)))
    for done in range(7):  # three files, the seal, the archive, and before them what there was is deleted
        left = done
        with pytest.raises(KeyboardInterrupt):
            mirror.put(6, new, pack(tmp_path, 6))
        assert mirror.steps() in ({4: True}, {6: False, 4: True})
        with pytest.raises(Damaged, match="its upload was interrupted"):
            mirror.run_files(6)
    left = 7
    mirror.put(6, new, pack(tmp_path, 6))
    assert left == 0
    assert mirror.steps() == {6: True, 4: True}
    mirror.fetch(6, tmp_path / "fetched")


def test_any_bit_of_a_copy_is_noticed_or_changes_nothing(mirror, tmp_path):
    put(mirror, tmp_path, 4)
    whole = (content(tmp_path / "checkpoints" / "4"), mirror.run_files(4))
    whole[0].pop("crc32.json")  # a changed name in it may change nothing
    noticed = 0
    for number, path in enumerate(sorted(FILES.find(ROOT))):
        data = FILES.cat_file(path)
        for position in range(number % 7, len(data), 7):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            FILES.pipe_file(path, bytes(changed))
            target = tmp_path / "fetched" / f"{number}-{position}"
            try:
                files = mirror.run_files(4)
                mirror.fetch(4, target)
                fetched = {name: data for name, data in content(target).items() if name != "crc32.json"}
                assert (fetched, files) == whole
            except Damaged:
                noticed += 1
        FILES.pipe_file(path, data)
    assert noticed > 50


@pytest.mark.parametrize("name", ["../config.json", "/etc/x", "pictures/../../1.png", "other.txt", "pictures/a/b.png"])
def test_an_archive_with_other_names_is_refused(name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("mirror.json", json.dumps({"format": 1, "step": 4, "files": [name]}))
        archive.writestr(name, b"x")
    with pytest.raises(Damaged, match=r"4\.zip is damaged"):
        unpack(content.getvalue(), 4)


def test_a_compressed_archive_is_refused_before_it_takes_memory():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mirror.json", json.dumps({"format": 1, "step": 4, "files": ["config.json"]}))
        archive.writestr("config.json", bytes(1 << 24))
    with pytest.raises(Damaged):
        unpack(content.getvalue(), 4)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../b", ""])
def test_a_seal_that_names_files_elsewhere_is_refused(mirror, tmp_path, name):
    put(mirror, tmp_path, 4)
    FILES.pipe_file(f"{ROOT}/4/crc32.json", json.dumps({"step": 4, "files": {name: 0}}).encode())
    with pytest.raises(Damaged, match=r"crc32\.json is damaged"):
        mirror.fetch(4, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_the_newest_are_kept_and_later_ones_left(mirror, tmp_path):
    for step in (2, 4, 6, 8, 10, 12):
        put(mirror, tmp_path, step)
    FILES.rm(f"{ROOT}/4.zip")
    FILES.rm(f"{ROOT}/12.zip")
    FILES.pipe_file(f"{ROOT}/notes.txt", b"of a human")
    mirror.prune(8, keep=2)
    assert mirror.steps() == {12: False, 10: True, 8: True, 6: True}
    assert FILES.exists(f"{ROOT}/notes.txt")


def test_a_linked_copy_outlives_the_original(tmp_path):
    folder = checkpoint(tmp_path, 4)
    there = content(folder)
    link_tree(folder, tmp_path / "linked")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert content(tmp_path / "linked") == there
    with pytest.raises(FileNotFoundError):
        link_tree(folder, tmp_path / "again")


@pytest.fixture
def said() -> list[str]:
    return []


def copying(mirror: Mirror | None, run_dir: Path, said: list[str], keep: int = 2) -> Mirroring:
    return Mirroring(mirror, run_dir, keep, said.append, pause=0.01)


def test_checkpoints_are_copied_while_others_are_made(mirror, tmp_path, said):
    with copying(mirror, tmp_path, said) as background:
        for step in (2, 4, 6):
            checkpoint(tmp_path, step)
            background.push(step)
            wait_for(lambda step=step: mirror.steps().get(step, False))
        (tmp_path / "results.json").write_text("[]")  # of the end of the run
    assert mirror.steps() == {6: True, 4: True}
    assert mirror.run_files(6)["results.json"] == b"[]"
    assert said == ["mirror: checkpoint 6 is at memory://mirror/run"]
    assert not (tmp_path / ".mirror.tmp").exists()
    assert not any(thread.name == "mirror" for thread in threading.enumerate())


def test_without_a_mirror_and_without_a_checkpoint_nothing_is_said(mirror, tmp_path, said):
    checkpoint(tmp_path, 2)
    with copying(None, tmp_path, said) as background:
        background.push(2)
    with copying(mirror, tmp_path, said):
        pass
    with copying(mirror, tmp_path, said) as background:
        background.push(4)  # which has no seal
    assert (said, FILES.store) == ([], {})


def test_what_fails_is_said_once_and_tried_again(mirror, tmp_path, said, monkeypatch):
    put_file, failures = type(FILES).put_file, 0

    def fail(self, *given, **options):
        nonlocal failures
        failures += 1
        if failures < 6:
            raise OSError("no route to host")
        return put_file(self, *given, **options)

    monkeypatch.setattr(type(FILES), "put_file", fail)
    checkpoint(tmp_path, 2)
    with copying(mirror, tmp_path, said) as background:
        background.push(2)
        wait_for(lambda: mirror.steps().get(2, False))
    assert said == [
        "warning: the mirror cannot be used (no route to host): training goes on, and it is tried again",
        "the mirror can be used again: it has checkpoint 2",
        "mirror: checkpoint 2 is at memory://mirror/run",
    ]


def test_what_fails_to_the_end_is_said_at_the_end(mirror, tmp_path, said, monkeypatch):
    checkpoint(tmp_path, 2)
    with copying(mirror, tmp_path, said) as background:
        background.push(2)
        wait_for(lambda: mirror.steps().get(2, False))
        monkeypatch.setattr(type(FILES), "put_file", lambda *_, **__: (_ for _ in ()).throw(OSError("forbidden")))
        checkpoint(tmp_path, 4)
        background.push(4)
        background.finish()
    assert said[0].startswith("warning: the mirror cannot be used (forbidden)")
    assert said[1:] == [
        "warning: checkpoint 4 could not be copied to memory://mirror/run (forbidden), which has checkpoint 2. "
        "The same command tries again"
    ]
    assert mirror.steps() == {4: False, 2: True} or mirror.steps() == {2: True}


def test_the_end_of_a_run_does_not_wait_for_a_mirror_that_hangs(mirror, tmp_path, said, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(type(FILES), "put_file", lambda *_, **__: over.wait())
    monkeypatch.setattr(mirroring, "HURRIED", 0.2)
    monkeypatch.setattr(mirroring, "PATIENCE", 0.2)
    checkpoint(tmp_path, 2)
    hanging = []
    for hurry in (True, False):
        background = copying(mirror, tmp_path, said)
        hanging.append(background._thread)
        background.__enter__()
        background.push(2)
        background.finish(hurry=hurry)
        assert said.pop().startswith("warning: checkpoint 2 could not be copied to memory://mirror/run (the time was")
    over.set()
    for thread in hanging:
        thread.join(60)


def test_a_damaged_checkpoint_is_not_copied(mirror, tmp_path, said):
    (checkpoint(tmp_path, 2) / "state" / "d" / "1").write_bytes(b"")
    with copying(mirror, tmp_path, said) as background:
        background.push(2)
    assert "the file state/d/1 is damaged" in said[-1]
    assert mirror.steps() == {}
