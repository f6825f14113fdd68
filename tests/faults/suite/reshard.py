"""A run that goes on with 8, 4 or 1 devices, divided in other ways: copies, FSDP, tensor parallelism."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.observed import observed_run
from faults.tiny import tiny

from umd_eqx.core.sharding import ShardingConfig

STEPS = 3
"""Steps of each session."""
BOUND = 1e-5
"""The largest relative difference of a loss from that of the run on one device: sums of float32 in another order."""


class Division(NamedTuple):
    """A number of devices, and how they are divided."""

    devices: int
    fsdp: int = 1
    tensor: int = 1


ONE = Division(1)
CHAINS = {
    "8-4-1-8": (Division(8), Division(4), ONE, Division(8)),
    "copies-fsdp-copies": (Division(8), Division(8, fsdp=8), Division(8), Division(4, fsdp=4)),
    "fsdp-4-1-8": (Division(8, fsdp=8), Division(4, fsdp=2), ONE, Division(8, fsdp=4)),
    "tensor-4-1-8": (Division(8, tensor=2), Division(4, tensor=2), ONE, Division(8, tensor=2)),
    "tensor-fsdp": (Division(8, fsdp=4, tensor=2), Division(8, fsdp=8), Division(4, fsdp=2, tensor=2), ONE),
}
"""The divisions of the sessions of a run, in order."""


def session(run_dir: str, steps: int, until: int, fsdp: int, tensor: int) -> dict[str, Any]:
    """In a process of its own: a run, or what follows of it, until a step."""
    config = tiny(optim__steps=steps, eval={}, sharding=ShardingConfig(fsdp=fsdp, tensor=tensor))
    return observed_run(config, Path(run_dir), limit_steps=until)


def goes_on(folder: Path, chain: Sequence[Division]) -> Outcome:
    """Each session restores, bit for bit, what the one before it saved; the losses are those of one device."""
    steps, right, wrong, before, rows = STEPS * len(chain), 0, [], None, []
    for number, division in enumerate(chain, start=1):
        given = (str(folder / "run"), steps, STEPS * number, division.fsdp, division.tensor)
        seen = apart(session, folder, *given, devices=division.devices).result()
        expected = None if before is None else [STEPS * (number - 1), before]
        if seen["restored"] != expected or seen["error"] or not seen["alike"]:
            wrong.append(f"session {number} on {division} restored {seen['restored']} {seen['error']}")
        elif number > 1:
            right += 1
        before, rows = seen["saved"].get(str(STEPS * number)), seen["rows"]
    alone = apart(session, folder, str(folder / "alone"), steps, steps, 1, 1).result()["rows"]
    worst = max((difference(a, b) for a, b in zip(rows, alone, strict=True)), default=1.0)
    if worst > BOUND:
        wrong.append(f"losses differ by {worst:.1e}")
    return Outcome(not wrong, "; ".join(wrong), {"restored": right, "moves": len(chain) - 1, "worst": worst})


def difference(row: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of the losses of a step."""
    losses = [name for name in other if "loss" in name]
    assert row["step"] == other["step"]
    return max(abs(row[name] - other[name]) / abs(other[name]) for name in losses)


def trials(quick: bool) -> list[Trial]:
    """A trial for each chain of divisions."""
    chains = {"quick": (Division(4, fsdp=2), ONE)} if quick else CHAINS
    return [Trial(name, lambda folder, chain=chain: goes_on(folder, chain)) for name, chain in chains.items()]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts moves to other devices."""
    restored, moves = (sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("restored", "moves"))
    worst = max((o.figures.get("worst", 1.0) for o in outcomes), default=1.0)
    return f"state bit-equal {restored}/{moves}; losses within {worst:.1e} of one device (bound {BOUND:.0e})"


FAULT = Fault("reshard", "resume on 8, 4, 1 devices, DP/FSDP/TP", trials, summary)
