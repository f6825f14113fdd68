"""Runs that are resumed from their mirror alone, whatever happened to it."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from faults.tiny import (
    arrays,
    assert_equal_bit_for_bit,
    numbers,
    on_one_device,
    rows,
    tiny,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import (
    one_device as one_device,
)

from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import run_identity
from umd_eqx.runs import mirrored as mirrored_runs
from umd_eqx.runs.run import run

URL, HALF, WHOLE = "memory://bucket/tiny", 4, 6
FILES = fsspec.filesystem("memory")
ROOT = "/bucket/tiny"

pytestmark = pytest.mark.usefixtures("one_device")


@functools.cache
def config(url: str | None = URL) -> Config:
    usual = tiny(checkpoint__mirror=url)
    # At each checkpoint, so that the end of a session adds none.
    return dataclasses.replace(usual, eval={"denoising": dataclasses.replace(usual.eval["denoising"], every=2)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of the run without a mirror and without an interruption."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(config(None), run_dir=directory, limit_steps=WHOLE)
    return directory


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The mirror, with steps 2 and 4, of a run that was lost: its files by their paths."""
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    lost = tmp_path_factory.mktemp("lost") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(config(), run_dir=lost, limit_steps=2)
        run(config(), run_dir=lost, limit_steps=HALF)
    return {path: FILES.cat_file(path) for path in FILES.find(ROOT)}


@pytest.fixture(autouse=True)
def mirror(mirrored: dict[str, bytes]) -> Iterator[None]:
    """That mirror, anew for each test."""
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    FILES.pipe(mirrored)
    yield
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]


def go_on(run_dir: Path, limit_steps: int = WHOLE) -> None:
    run(config(), run_dir=run_dir, limit_steps=limit_steps)


def same_as(run_dir: Path, whole: Path) -> None:
    assert numbers(run_dir) == numbers(whole)
    assert_equal_bit_for_bit(arrays(run_dir, config()), arrays(whole, config()))
    assert {path.name for path in (run_dir / "pictures").glob("*/*")} == {
        path.name for path in (whole / "pictures").glob("*/*")
    }


def damage(path: str) -> None:
    data = bytearray(FILES.cat_file(path))
    data[len(data) // 2] ^= 1
    FILES.pipe_file(path, bytes(data))


def largest(step: int) -> str:
    return max(FILES.find(f"{ROOT}/{step}"), key=lambda path: FILES.info(path)["size"])


def names() -> set[str]:
    return {path.rpartition("/")[2] for path in FILES.ls(ROOT, detail=False)}


def test_a_run_from_its_mirror_alone_is_the_run_that_never_stopped(tmp_path, whole, capsys):
    assert names() == {"2", "2.zip", "4", "4.zip"}
    go_on(tmp_path / "run")
    out = capsys.readouterr().out
    assert "fetching checkpoint 4 from memory://bucket/tiny" in out
    assert "resuming" in out
    assert "mirror: checkpoint 6 is at memory://bucket/tiny" in out
    same_as(tmp_path / "run", whole)
    assert names() == {"4", "4.zip", "6", "6.zip"}
    assert not (tmp_path / "run" / ".mirror.tmp").exists()
    # The run is over at the mirror, too: it is fetched, shown and not trained.
    go_on(tmp_path / "again")
    assert "is finished: it is at step 6" in capsys.readouterr().out
    same_as(tmp_path / "again", whole)
    assert (tmp_path / "again" / "report.html").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda: damage(largest(4)), "is damaged"),
        (lambda: FILES.rm(f"{ROOT}/4", recursive=True), "a file is missing"),
        (lambda: FILES.rm(f"{ROOT}/4.zip"), "its upload was interrupted"),
        (lambda: FILES.pipe_file(f"{ROOT}/4.zip", FILES.cat_file(f"{ROOT}/2.zip")), "the archive of another step"),
    ],
)
def test_what_is_damaged_is_skipped_with_its_reason(tmp_path, whole, spoil, reason, capsys):
    spoil()
    go_on(tmp_path / "run")
    out = capsys.readouterr().out
    assert "warning: checkpoint 4 at memory://bucket/tiny cannot be used" in out
    assert reason in out
    assert "fetching checkpoint 2" in out
    same_as(tmp_path / "run", whole)
    FILES.rm(f"{ROOT}/4", recursive=True)
    go_on(tmp_path / "again")  # what was copied since is intact
    assert_equal_bit_for_bit(arrays(tmp_path / "again", config()), arrays(whole, config()))


def test_where_nothing_is_intact_nothing_is_started_afresh(tmp_path):
    damage(largest(4))
    FILES.rm(largest(2))
    with pytest.raises(BadInput, match="none of the checkpoints at memory://bucket/tiny can be read") as caught:
        go_on(tmp_path / "run")
    assert caught.value.field == "checkpoint.mirror"
    assert not rows(tmp_path / "run")


def test_an_older_state_here_is_replaced_and_a_newer_one_is_not(tmp_path, whole, capsys):
    run(config(None), run_dir=tmp_path / "run", limit_steps=2)
    go_on(tmp_path / "run", HALF)
    assert "fetching checkpoint 4" in capsys.readouterr().out
    FILES.rm(f"{ROOT}/4", recursive=True)
    FILES.rm(f"{ROOT}/4.zip")
    go_on(tmp_path / "run")
    assert "fetching" not in capsys.readouterr().out
    same_as(tmp_path / "run", whole)
    assert {"6", "6.zip"} <= names()


def test_a_damaged_state_here_is_replaced(tmp_path, whole, capsys):
    go_on(tmp_path / "run", HALF)
    here = tmp_path / "run/checkpoints/4"
    max((path for path in here.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).write_bytes(b"")
    capsys.readouterr()
    go_on(tmp_path / "run")
    assert "fetching checkpoint 4" in capsys.readouterr().out
    assert here.with_name("4.corrupt").exists()
    same_as(tmp_path / "run", whole)


def test_a_mirror_out_of_reach_stops_only_what_it_may_have_more_of(tmp_path, whole, capsys, monkeypatch):
    run(config(None), run_dir=tmp_path / "run", limit_steps=2)
    monkeypatch.setattr(mirrored_runs, "PAUSE", 0.0)
    monkeypatch.setattr(type(FILES), "ls", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
    with pytest.raises(BadInput, match=r"memory://bucket/tiny cannot be read \(no route to host\)") as caught:
        go_on(tmp_path / "new")
    assert caught.value.field == "checkpoint.mirror"
    monkeypatch.setattr(type(FILES), "put_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
    capsys.readouterr()
    go_on(tmp_path / "run")
    out = capsys.readouterr().out
    assert "the run resumes from its directory" in out
    assert "warning: checkpoint 6 could not be copied to memory://bucket/tiny (no route to host)" in out
    same_as(tmp_path / "run", whole)


def test_the_mirror_of_another_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="the run in memory://bucket/tiny was started with 0, and now it is 1") as caught:
        run(tiny(checkpoint__mirror=URL, seed=1), run_dir=tmp_path / "run", limit_steps=2)
    assert caught.value.field == "seed"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_mirror_does_not_make_a_run():
    assert run_identity(config()) == run_identity(config(None))
