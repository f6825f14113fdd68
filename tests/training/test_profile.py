"""Traces of some steps."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.training.profile import Profile, ProfileConfig


def steps_in(run_dir: Path) -> list[int]:
    """The steps in the Perfetto trace of a run."""
    (path,) = run_dir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


def traced(config: ProfileConfig, run_dir: Path, steps: range) -> list[str]:
    said: list[str] = []
    with Profile(config, run_dir, steps.start, said.append) as profile:
        x = jnp.ones(8)
        for step in steps:
            with profile.step(step):
                x = x + 1
    return said


def test_only_the_steps_that_are_asked_for_are_traced(tmp_path):
    (said,) = traced(ProfileConfig(2, 4), tmp_path, range(6))
    assert steps_in(tmp_path) == [2, 3]
    assert said.startswith(f"profiled step 2 to 4: open {tmp_path}/profile/plugins/profile/")
    assert "https://ui.perfetto.dev" in said
    assert f"xprof --logdir {tmp_path}/profile" in said
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_a_run_that_ends_or_starts_within_them_traces_what_it_trains(tmp_path):
    assert traced(ProfileConfig(2, 9), tmp_path / "a", range(4))[0].startswith("profiled step 2 to 4")
    assert steps_in(tmp_path / "a") == [2, 3]
    assert traced(ProfileConfig(2, 5), tmp_path / "b", range(4, 8))[0].startswith("profiled step 4 to 5")
    assert steps_in(tmp_path / "b") == [4]
    (said,) = traced(ProfileConfig(2, 4), tmp_path / "c", range(4, 6))
    assert said == "warning: steps 2 to 4 are not profiled: the run is resumed after them, at step 4"
    assert traced(ProfileConfig(), tmp_path / "d", range(2)) == []
    assert traced(ProfileConfig(4, 5), tmp_path / "d", range(2)) == []
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "d").exists()


def test_beside_another_profiler_the_run_goes_on_without_a_profile(tmp_path):
    jax.profiler.start_trace(tmp_path / "other")
    try:
        (said,) = traced(ProfileConfig(1, 3), tmp_path, range(4))
    finally:
        jax.profiler.stop_trace()
    assert said.startswith("warning: nothing is profiled: ")
    assert not (tmp_path / "profile").exists()


def test_an_error_within_them_leaves_no_trace_running(tmp_path):
    config, silent = ProfileConfig(0, 2), lambda text: None
    with pytest.raises(ZeroDivisionError), Profile(config, tmp_path, 0, silent) as profile, profile.step(0):
        raise ZeroDivisionError
    jax.profiler.start_trace(tmp_path / "other")
    jax.profiler.stop_trace()


@pytest.mark.parametrize(
    ("begin", "end", "field", "problem"),
    [
        (None, 3, "profile.from", "it is missing beside `profile.to`"),
        (3, None, "profile.to", "it is missing beside `profile.from`"),
        (-1, 3, "profile.from", "-1 is negative"),
        (3, 3, "profile.to", "3 is not after `profile.from=3`"),
        (3, 2, "profile.to", "2 is not after"),
        (3, 11, "profile.to", "11 is after the last step of the run, 10"),
    ],
)
def test_steps_outside_of_the_run_are_refused(begin, end, field, problem):
    with pytest.raises(BadInput, match=problem) as caught:
        ProfileConfig(begin, end).validate(10)
    assert caught.value.field == field


def test_no_steps_and_steps_within_the_run_are_accepted():
    ProfileConfig().validate(10)
    ProfileConfig(0, 10).validate(10)
    assert ProfileConfig().steps == range(0)
    assert ProfileConfig(9, 10).steps == range(9, 10)
