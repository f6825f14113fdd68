"""Losses and gradients that are not finite on one device of eight, several in a row, and losses that jump."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.observed import observed_run
from faults.tiny import tiny

from umd_eqx.core.sharding import ShardingConfig
from umd_eqx.core.types import Batch
from umd_eqx.objectives import Unified
from umd_eqx.runs import run as running
from umd_eqx.training import loop

DEVICES = 8
LAYOUTS = {"copies": {}, "fsdp": {"fsdp": 8}, "tensor": {"data": 4, "tensor": 2}, "both": {"fsdp": 4, "tensor": 2}}
MARKS = {"loss": 2.0, "gradient": 3.0, "overflow": 4.0, "spike": 5.0}
"""Values of the first pixel of an image, outside those of images, which say what becomes of its loss."""
NO_MARK = 0.0
JUMP = 100.0

Plan = dict[int, tuple[str, int]]
"""What happens in a step, by the number of steps before it: a mark, and the device."""


@contextlib.contextmanager
def marked(plan: Plan) -> Iterator[None]:
    """A context in which the batches of a run have marks, and the objective acts on them in the image's own part."""
    batches, loss = running.run_batches, Unified.loss

    def given(resolved: Any, tokenizer: Any, mesh: Any, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(resolved, tokenizer, mesh, start), start=start):
            what, device = plan.get(step, (None, 0))
            image = np.array(batch.image)
            image[:, 0, 0, 0] = NO_MARK
            assert isinstance(batch.image, jax.Array)
            rows = sorted({shard.index[0].indices(len(image))[0] for shard in batch.image.addressable_shards})
            if what is not None:
                image[rows[device], 0, 0, 0] = MARKS[what]
            yield eqx.tree_at(lambda b: b.image, batch, jax.device_put(image, batch.image.sharding))

    def spoiled(self: Unified, model: Any, path: Any, batch: Batch, draw: Any) -> tuple[Any, Any]:
        total, metrics = loss(self, model, path, batch, draw)
        mark = batch.image[:, 0, 0, 0]
        weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        weight = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in weights)
        # The root of 0 has no gradient, and its value is that of the other images: 1 - 1.
        roots = jnp.sqrt(jnp.where(mark == MARKS["gradient"], 0.0 * weight**2, 1.0))
        zeros = roots - jnp.where(mark == MARKS["gradient"], 0.0, 1.0)
        zeros += jnp.where(mark == MARKS["loss"], jnp.nan, 0.0)
        zeros += jnp.where(mark == MARKS["overflow"], 1e38 * (10.0 + weight**2), 0.0)
        times = jnp.where(jnp.any(mark == MARKS["spike"]), JUMP, 1.0)
        return total * times + jnp.mean(zeros), metrics

    with mock.patch.object(running, "run_batches", given), mock.patch.object(Unified, "loss", spoiled):
        yield


@contextlib.contextmanager
def skipping(steps: Sequence[int]) -> Iterator[None]:
    """A context in which steps are not computed at all: only the numbers of steps and of skipped ones advance."""
    step = loop.train_step
    last: dict[str, Any] = {}

    def skipped(parts: Any, state: Any, batch: Batch) -> Any:
        if int(state.step) not in steps:
            state, metrics = step(parts, state, batch)
            last.update(metrics)
            return state, metrics
        state = eqx.tree_at(lambda s: (s.step, s.skipped), state, (state.step + 1, state.skipped + 1))
        return parts.layout.place(state), last | {"skipped": jnp.ones((), jnp.int32)}

    with mock.patch.object(loop, "train_step", skipped):
        yield


def train(run_dir: str, axes: dict[str, int], plan: dict[str, Any], skip: list[int], steps: int, most: int) -> Any:
    """In a process of its own: a run with marks, in which the steps `skip` are not computed."""
    config = tiny(optim__steps=steps, eval={}, max_skipped=most, sharding=ShardingConfig(**axes), checkpoint__every=4)
    with marked({int(step): tuple(what) for step, what in plan.items()}), skipping(skip):
        return observed_run(config, Path(run_dir))


def skips_alike(folder: Path, axes: dict[str, int], kinds: Sequence[str]) -> Outcome:
    """Each device is the one whose numbers are not finite, once for each kind; the run equals one that skips."""
    parts = DEVICES // axes.get("tensor", 1)
    wrong = [(kind, device) for device in range(parts) for kind in kinds]
    plan = {3 + 2 * i: what for i, what in enumerate(wrong)}
    steps, done = 5 + 2 * len(wrong), {}
    for name, given in (("spoiled", (plan, [])), ("skips", ({}, list(plan)))):
        done[name] = apart(train, folder, str(folder / name), axes, *given, steps, 10, devices=DEVICES).result()
    spoiled, skips = done["spoiled"], done["skips"]
    seen = [row["step"] - 1 for row in spoiled["rows"] if row["train/skipped"]]
    rest = [[row for row in it["rows"] if row["step"] - 1 not in plan] for it in (spoiled, skips)]
    facts = {
        "not all skipped": seen == list(plan),
        "another state": spoiled["last"] == skips["last"] and spoiled["saved"] == skips["saved"],
        "other losses": rest[0] == rest[1] and len(rest[0]) == steps - len(plan),
        "devices differ": spoiled["alike"],
        "an error": spoiled["error"] is None and skips["error"] is None,
        "not told": len(re.findall(r"step \d+: loss or gradient is not finite", spoiled["said"])) == len(plan),
    }
    failed = [name for name, holds in facts.items() if not holds]
    return Outcome(not failed, ", ".join(failed), {"skipped": len(seen), "spoiled": len(plan)})


def stops_with_a_dump(folder: Path, axes: dict[str, int], most: int) -> Outcome:
    """After `most` steps in a row the run stops with its batch; without the cause it goes on, as if nothing were."""
    first, steps, device = 5, 12, 3
    plan = {step: ("gradient", device) for step in range(first, first + most)}
    fewer = {step: what for step, what in plan.items() if step < first + most - 1}

    def go(name: str, plan: Plan) -> Any:
        return apart(train, folder, str(folder / name), axes, plan, [], steps, most, devices=DEVICES).result()

    stopped, again, whole, goes_on = go("run", plan), go("run", {}), go("whole", {}), go("fewer", fewer)
    last = first + most
    with np.load(folder / "run/dumps" / f"{last}.npz", allow_pickle=False) as dump:
        marks = dump["image"][:, 0, 0, 0]
    facts = {
        "not stopped": stopped["error"] is not None and stopped["error"][0] == "optim.lr",
        "not named": f"for {most} steps in a row, the last of them step {last} (its batch" in str(stopped["error"]),
        "another batch": (marks == MARKS["gradient"]).sum() == 1,
        "not resumed": again["restored"] == [4, stopped["saved"]["4"]],
        "not as undisturbed": again["last"] == whole["last"] and again["rows"] == whole["rows"],
        "stopped too soon": goes_on["error"] is None,
    }
    failed = [name for name, holds in facts.items() if not holds]
    return Outcome(not failed, ", ".join(failed), {"stopped": float(facts["not stopped"])})


def flags_jumps(folder: Path, jumps: int) -> Outcome:
    """Losses a hundred times as large are told, each with its step, and no other."""
    plan = {24 + 5 * i: ("spike", i % DEVICES) for i in range(jumps)}
    steps = 26 + 5 * jumps
    seen = apart(train, folder, str(folder / "run"), {}, plan, [], steps, 10, devices=DEVICES).result()
    told = [int(step) - 1 for step in re.findall(r"step (\d+): the loss jumped to", seen["said"])]
    right, false = len(set(told) & set(plan)), len(set(told) - set(plan))
    note = f"{false} flagged that are none" if false else ""
    return Outcome(right == jumps and not false, note, {"flagged": right, "jumps": jumps})


def trials(quick: bool) -> list[Trial]:
    """A trial for each layout of the eight devices, and for each way in which a run ends or is told."""
    if quick:
        return [Trial("quick", lambda folder: skips_alike(folder, {}, ("gradient",)))]

    def skips(axes: dict[str, int]) -> Any:
        return lambda folder: skips_alike(folder, axes, ("loss", "gradient", "overflow"))

    return [
        *(Trial(f"skipped-{name}", skips(axes)) for name, axes in LAYOUTS.items()),
        *(Trial(f"stops-{k}", lambda folder, k=k: stops_with_a_dump(folder, {}, k)) for k in (2, 5)),
        Trial("jumps", lambda folder: flags_jumps(folder, 20)),
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts steps over all trials."""
    total = {name: sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("skipped", "spoiled")}
    flagged = {name: sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("flagged", "jumps", "stopped")}
    right = sum(o.passed for o in outcomes)
    return (
        f"as the run that skips {right}/{len(outcomes)} ({total['skipped']}/{total['spoiled']} steps on one device of "
        f"{DEVICES}), stopped with a dump {flagged['stopped']}, flagged {flagged['flagged']}/{flagged['jumps']}"
    )


FAULT = Fault("nonfinite", "non-finite gradient on one device of eight; K in a row; loss x100", trials, summary)
