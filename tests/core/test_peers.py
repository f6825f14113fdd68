"""What a process makes of what the others said; processes that end each other are in tests/faults."""

from umd_eqx.core.peers import ALIVE, ENDED, Seen, leave_together
from umd_eqx.core.processes import PROGRESS


def after(*said: tuple[float, dict[str, str]], now: float) -> Seen:
    """What was seen at some times, in seconds."""
    times = iter([*(time for time, _ in said)])
    clock = [0.0]
    seen = Seen(lambda: clock[0])
    for (_, words), clock[0] in zip(said, times, strict=True):
        seen.update(words)
    clock[0] = now
    return seen


def test_a_process_is_lost_once_its_beat_stands_still():
    beats = [(float(t), {f"{ALIVE}/0": str(t), f"{ALIVE}/1": str(min(t, 3))}) for t in range(20)]
    assert after(*beats, now=20.0).unchanged(ALIVE, 10.0) == "process 1"
    assert after(*beats, now=20.0).unchanged(ALIVE, 18.0) == ""


def test_a_process_that_has_ended_is_neither_lost_nor_hangs():
    words = {f"{ALIVE}/1": ENDED, f"{PROGRESS}/1": "step 7", f"{ALIVE}/0": "4"}
    seen = after((0.0, words), now=100.0)
    assert seen.unchanged(PROGRESS, 10.0) == ""
    assert seen.unchanged(ALIVE, 10.0) == "process 0"


def test_those_that_hang_are_named_with_what_they_began():
    words = {f"{PROGRESS}/{i}": f"step {i}" for i in range(6)}
    seen = after((0.0, words), (50.0, words | {f"{PROGRESS}/0": "evaluating fewshot"}), now=60.0)
    named = "process 1 (step 1), process 2 (step 2), process 3 (step 3), process 4 (step 4), 1 more"
    assert seen.unchanged(PROGRESS, 20.0) == named


def test_a_process_on_its_own_leaves_nobody():
    leave_together("unheard", 1)
