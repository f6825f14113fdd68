"""A run directory, or its metrics file, that is taken away while the run is on: one line, and nothing written anew."""

import shutil
from pathlib import Path

import pytest
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import ended, let_go, one_device, rows, start, tiny, wait_until_held

from umd_eqx.commands.cli import main
from umd_eqx.training import loop

__all__ = ["one_device"]


def test_a_directory_deleted_while_the_run_is_on_ends_it_and_is_not_made_again(tmp_path):
    directory = tmp_path / "run"
    process = start(directory, hold_after=3)
    wait_until_held(process, directory)
    delete(directory)
    let_go(directory)
    code, _, error = ended(process)
    assert code == 2
    assert error == (
        f"error: --run-dir: {directory} was deleted, renamed or replaced while this process was writing into it. "
        "Put it back and run the same command again, or choose another\n"
    )
    nothing_is_written_anew(directory)


def nothing_is_written_anew(directory: Path) -> None:
    # A save that is under way when the directory is deleted may still make the folder that it writes into, with a seal.
    written = (path.relative_to(directory) for path in directory.rglob("*.json*"))
    assert [path for path in written if path.parts[0] != "checkpoints"] == []
    assert not (directory / ".lock").exists()


def delete(directory: Path) -> None:
    # Renamed first: a save that is under way makes files while others are deleted.
    gone = directory.with_name("gone")
    directory.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def rename(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


def replace(directory: Path) -> None:
    shutil.copytree(directory, directory.with_name("copy"))
    rename(directory)
    directory.with_name("copy").rename(directory)


def delete_metrics(directory: Path) -> None:
    (directory / "metrics.jsonl").unlink()


def replace_metrics(directory: Path) -> None:
    shutil.copy(directory / "metrics.jsonl", directory / "copy")
    (directory / "copy").rename(directory / "metrics.jsonl")


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("at", [3, 6])  # an odd step has no checkpoint of its own; the save of an even one is under way
@pytest.mark.parametrize("harm", [delete, rename, replace, delete_metrics, replace_metrics])
def test_whatever_is_taken_away_is_told_within_a_step(tmp_path, monkeypatch, capsys, harm, at):
    directory, step, told = tmp_path / "run", loop.train_step, []

    def harmed(parts, state, batch):
        if int(state.step) == at and not told:
            told.append(int(state.step))
            harm(directory)
        return step(parts, state, batch)

    monkeypatch.setattr(loop, "train_step", harmed)
    with pytest.raises(SystemExit) as end:
        main({"tiny": tiny}, ["tiny", "--run-dir", str(directory)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert len(error.splitlines()) == 1, error
    assert "was deleted, renamed or replaced while" in error
    kept = directory.with_name("elsewhere") if harm in (rename, replace) else directory
    if harm is delete:
        nothing_is_written_anew(directory)
    elif harm is not delete_metrics:
        assert [row["step"] for row in rows(kept)] == list(range(1, at + 1))
    if harm is replace:
        assert [row["step"] for row in rows(directory)] == list(range(1, at + 1))
