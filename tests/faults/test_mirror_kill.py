"""A machine that is lost with its disk: the run goes on elsewhere, from its mirror."""

import shutil
import signal
import time

from faults.tiny import arrays, assert_equal_bit_for_bit, ended, numbers, start, tiny, wait_until_held
from faults.tiny import compilation_cache as compilation_cache


def test_a_run_that_is_killed_and_lost_goes_on_from_its_mirror(tmp_path):
    mirror = tmp_path / "mirror"
    flags = ("--limit-steps", "6", "--checkpoint.mirror", f"file://{mirror}")
    whole = start(tmp_path / "whole", "--limit-steps", "6")  # beside the other, to take less time
    lost = start(tmp_path / "lost", *flags, hold_after=5)
    wait_until_held(lost, tmp_path / "lost")
    end = time.monotonic() + 120
    while not (mirror / "4.zip").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    lost.kill()
    assert ended(lost)[0] == -signal.SIGKILL
    shutil.rmtree(tmp_path / "lost")
    (mirror / "6").mkdir()  # what an upload leaves that was interrupted
    (mirror / "6" / "_METADATA").write_bytes(b"{")
    code, out, error = ended(start(tmp_path / "run", *flags))
    assert (code, error) == (0, "")
    assert "checkpoint 6 at file://" in out
    assert "cannot be used (its upload was interrupted); trying the one before it" in out
    assert f"fetching checkpoint 4 from file://{mirror}" in out
    assert f"mirror: checkpoint 6 is at file://{mirror}" in out
    assert ended(whole)[0] == 0
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert_equal_bit_for_bit(arrays(tmp_path / "run", tiny()), arrays(tmp_path / "whole", tiny()))
