"""Checkpoints that a disk has damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from etils import epath
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

from umd_eqx.checkpoint import Checkpoints
from umd_eqx.config import build
from umd_eqx.errors import BadInput
from umd_eqx.run import run
from umd_eqx.sharding import make_mesh

CONFIG = tiny(eval={})
STEPS = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints at 4 and 6."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        run(CONFIG, run_dir=directory, limit_steps=STEPS)
    assert {path.name for path in (directory / "checkpoints").iterdir() if path.is_dir()} == {"4", "6"}
    return directory


def largest_file(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint: Path) -> None:
    path = largest_file(checkpoint)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    path = largest_file(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete(checkpoint: Path) -> None:
    largest_file(checkpoint).unlink()


def truncate_the_description(checkpoint: Path) -> None:
    for path in checkpoint.rglob("_METADATA"):
        path.write_bytes(path.read_bytes()[:20])


def restored(directory: Path) -> tuple[int | None, list[str]]:
    """The step that is restored, and what is said."""
    mesh = make_mesh(jax.devices()[:1])
    like = build(CONFIG, CONFIG.data.describe(), mesh).abstract_state()
    checkpoints, said = Checkpoints(epath.Path(directory / "checkpoints"), keep=2), []
    try:
        found = checkpoints.restore(like, jax.sharding.SingleDeviceSharding(jax.devices()[0]), said.append)
    finally:
        checkpoints.close()
    return None if found is None else found[0], said


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete, truncate_the_description])
def test_the_checkpoint_before_the_damaged_one_is_used(finished, damage: Callable[[Path], None], tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    damage(directory / "checkpoints/6")
    step, said = restored(directory)
    assert step == 4
    assert len(said) == 1
    assert "checkpoint 6 is corrupt" in said[0]
    assert "trying the one before it" in said[0]
    assert (directory / "checkpoints/6.corrupt").is_dir()
    assert restored(directory) == (4, [])


def test_where_none_can_be_read_the_run_is_refused_and_stays_so(finished, tmp_path):
    # The second time, too: to begin again at step 0 would wipe the numbers of the run.
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    for step in (4, 6):
        flip_a_bit(directory / f"checkpoints/{step}")
    for _ in range(2):
        with pytest.raises(BadInput, match=r"none of the checkpoints in .* can be read") as error:
            restored(directory)
        assert error.value.field == "--run-dir"


def test_a_checkpoint_killed_before_its_seal_was_written_is_read(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "checkpoints/6/crc32.json").unlink()
    assert restored(directory) == (6, [])


@pytest.mark.usefixtures("one_device")
def test_a_run_whose_newest_checkpoint_is_damaged_tells_and_ends_as_if_it_were_not(finished, tmp_path, capsys):
    directory = tmp_path / "run"
    run(CONFIG, run_dir=directory, limit_steps=4)
    flip_a_bit(directory / "checkpoints/4")
    capsys.readouterr()
    run(CONFIG, run_dir=directory, limit_steps=STEPS)
    out = capsys.readouterr().out
    assert "warning: checkpoint 4 is corrupt" in out
    assert "at step 2 of 12" in out
    assert [row["step"] for row in rows(directory)] == list(range(1, STEPS + 1))
    assert numbers(directory) == numbers(finished)
    assert_equal_bit_for_bit(arrays(directory, CONFIG), arrays(finished, CONFIG))
