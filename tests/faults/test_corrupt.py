"""Checkpoints that a disk has damaged."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from etils import epath
from faults.tiny import (
    arrays,
    assert_equal_bit_for_bit,
    ended,
    numbers,
    on_one_device,
    rows,
    start,
    tiny,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import (
    one_device as one_device,
)

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config
from umd_eqx.runs.run import run
from umd_eqx.training import checkpoint
from umd_eqx.training.checkpoint import Checkpoints

CONFIG = tiny(eval={})
STEPS = 6
UNSEALED = "checkpoint 6 has no crc32.json: it is restored unchecked"


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


def restored(
    directory: Path, config: Config = CONFIG, failure: BaseException | None = None
) -> tuple[int | None, list[str]]:
    """The step that is restored, and what is said; `failure` is what becomes of orbax's restore."""
    mesh = make_mesh(jax.devices()[:1])
    like = build(config, config.data.describe(), mesh).abstract_state()
    checkpoints, said = Checkpoints(epath.Path(directory / "checkpoints"), keep=2), []

    def fail(*arguments, **options):
        raise failure

    if failure is not None:
        checkpoints.manager.restore = fail
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
        assert error.value.field == "run_dir"


def test_a_checkpoint_killed_before_its_seal_was_written_is_read(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "checkpoints/6/crc32.json").unlink()
    assert restored(directory) == (6, [UNSEALED])


def unsealed(checkpoint: Path) -> None:
    """Makes a checkpoint one that was killed before its seal was written."""
    (checkpoint / "crc32.json").unlink()


def sealed_by_an_older_version(checkpoint: Path) -> None:
    """Writes the seal as it was before it had a step: the files alone."""
    seal = checkpoint / "crc32.json"
    seal.write_text(json.dumps(json.loads(seal.read_text())["files"]))


def test_a_seal_of_an_older_version_is_checked_as_before(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    sealed_by_an_older_version(directory / "checkpoints/6")
    assert restored(directory) == (6, [])
    flip_a_bit(directory / "checkpoints/6")
    assert restored(directory)[0] == 4


@pytest.mark.parametrize("seal", [lambda checkpoint: None, sealed_by_an_older_version, unsealed])
def test_a_checkpoint_that_was_renamed_is_not_restored_as_another_step(finished, tmp_path, seal):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "checkpoints/6").rename(directory / "checkpoints/8")
    seal(directory / "checkpoints/8")
    step, said = restored(directory)
    assert step == 4
    assert said == [
        "checkpoint 8 is corrupt (it is the checkpoint of step 6, renamed); set aside as 8.corrupt, "
        "trying the one before it"
    ]


def test_checkpoints_that_were_swapped_are_not_restored(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    folder = directory / "checkpoints"
    for old, new in (("4", "swapped"), ("6", "4"), ("swapped", "6")):
        (folder / old).rename(folder / new)
    with pytest.raises(BadInput, match="none of the checkpoints"):
        restored(directory)


def test_what_orbax_makes_of_damage_is_known_where_there_is_no_seal(finished, tmp_path):
    # In a process of its own: there is no traceback of what orbax's other threads met, either.
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "checkpoints/6/crc32.json").unlink()
    truncate(directory / "checkpoints/6")
    (directory / "checkpoints/4/crc32.json").unlink()
    truncate_the_description(directory / "checkpoints/4")
    code, out, error = ended(start(directory, "--limit-steps", "7"))
    assert code == 2
    assert "checkpoint 6 is corrupt (OUT_OF_RANGE: Error" in out
    assert "checkpoint 4 is corrupt (Unterminated string" in out
    assert error.startswith("error: --run-dir: none of the checkpoints")
    assert len(error.splitlines()) == 1


LEFT_OVER = """
import asyncio, builtins, gc, sys
from etils import epath
from umd_eqx.training.checkpoint import Checkpoints

Checkpoints(epath.Path(sys.argv[1]), keep=1).close()

async def read():
    await asyncio.sleep(60)

async def fail():
    raise OSError("a damaged file")

async def abandon():
    task = asyncio.ensure_future(fail())
    await asyncio.sleep(0.01)

read()                         # collected at once
builtins.left_over = read()    # collected after everything else is gone
asyncio.run(abandon())
loop = asyncio.new_event_loop()
loop.create_task(read())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
del loop
gc.collect()
"""


def test_what_orbax_leaves_under_way_says_nothing_whenever_it_is_collected(tmp_path):
    # When that is, is a matter of luck where a damaged file is really read: here each case is made.
    words = [sys.executable, "-c", LEFT_OVER, str(tmp_path / "checkpoints")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def wrapped(error: BaseException) -> Exception:
    """As orbax hands on what it meets while it reads an array."""
    outer = Exception("Encountered error while reading array index")
    outer.__cause__ = error
    return outer


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def tensorstore(status: str, number: int) -> ValueError:
    return ValueError(f"{status}: Error reading: {os.strerror(number)} [os_error_code='{number}']")


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (system(errno.EIO), BadInput, r"checkpoint 6 in .* cannot be read \(Input/output error\)"),
        (system(errno.EACCES), BadInput, r"cannot be read \(Permission denied\)"),
        (system(errno.EMFILE), BadInput, r"cannot be read \(Too many open files\)"),
        (tensorstore("UNKNOWN", errno.EIO), BadInput, r"cannot be read \(Input/output error\)"),
        (wrapped(tensorstore("UNKNOWN", errno.EIO)), BadInput, r"cannot be read \(Input/output error\)"),
        (wrapped(tensorstore("PERMISSION_DENIED", errno.EACCES)), BadInput, r"cannot be read \(Permission denied\)"),
        (wrapped(ValueError("UNAVAILABLE: try again")), BadInput, r"cannot be read \(UNAVAILABLE\)"),
        (MemoryError(), MemoryError, "^$"),
        (wrapped(MemoryError()), Exception, "reading array index"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), jax.errors.JaxRuntimeError, "Out of memory"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (wrapped(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
    ],
    ids=repr,
)
def test_a_machine_in_trouble_is_not_taken_for_damage(finished, tmp_path, failure, raised, said, sealed):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    if not sealed:
        (directory / "checkpoints/6/crc32.json").unlink()
    with pytest.raises(raised, match=said):
        restored(directory, failure=failure)
    assert restored(directory) == (6, [] if sealed else [UNSEALED])


@pytest.mark.parametrize(
    "failure",
    [
        wrapped(ValueError("OUT_OF_RANGE: Requested byte range [0, 355) is not valid for value of size 177")),
        wrapped(ValueError("NOT_FOUND: Error reading")),
        ValueError("DATA_LOSS: CRC-32C checksum verification failed"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        KeyError("tree_metadata"),
    ],
    ids=repr,
)
def test_damage_is_told_from_it_where_there_is_no_seal(finished, tmp_path, failure):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    for step in (4, 6):
        (directory / f"checkpoints/{step}/crc32.json").unlink()
    with pytest.raises(BadInput, match="none of the checkpoints"):
        restored(directory, failure=failure)
    assert {path.name for path in (directory / "checkpoints").iterdir()} >= {"4.corrupt", "6.corrupt"}


def test_a_disk_that_cannot_read_the_files_for_the_seal_is_not_taken_for_damage(finished, tmp_path, monkeypatch):
    def fail(folder):
        raise system(errno.EIO)

    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digests", fail)
        with pytest.raises(BadInput, match="Input/output error"):
            restored(directory)
    assert restored(directory) == (6, [])


def test_files_that_are_as_they_were_sealed_are_never_set_aside(finished, tmp_path):
    # Another state than the one that was saved: what orbax raises of it, it could raise of damage, too.
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    with pytest.raises(ValueError, match="do not match"):
        restored(directory, tiny(eval={}, ema__only_with_labels=True))
    assert restored(directory) == (6, [])


def test_a_seal_that_is_damaged_itself_is_damage(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "checkpoints/6/crc32.json").write_text('{"state/_META')
    step, said = restored(directory)
    assert step == 4
    assert "the file crc32.json is damaged" in said[0]


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
