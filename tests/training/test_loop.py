"""The loop's parts, each with a clock, a model or a batch that is made up."""

import dataclasses
import errno
import threading
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.tiny import arrays, rows, tiny
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import one_device as one_device

from umd_eqx.commands.cli import main
from umd_eqx.core.errors import BadInput
from umd_eqx.core.predictions import PredictionType
from umd_eqx.core.types import NO_CLASS, Batch, Report
from umd_eqx.eval import AbstractEvaluator
from umd_eqx.models import AbstractModel
from umd_eqx.objectives import MaskedDenoising, Term
from umd_eqx.runs.run import run
from umd_eqx.training import checkpoint, loop
from umd_eqx.training.checkpoint import Checkpoints
from umd_eqx.training.guards import Guard
from umd_eqx.training.loop import Evaluations
from umd_eqx.training.meter import Meter
from umd_eqx.training.step import TrainState

FINE, SKIPPED = {"skipped": jnp.asarray(0)}, {"skipped": jnp.asarray(1)}


class TestGuard:
    """Each step is looked at when the next one is under way."""

    def test_so_many_skipped_steps_in_a_row_stop_the_run_and_name_the_learning_rate(self):
        said = []
        guard = Guard(3, said.append)
        for step in (1, 2, 3):
            guard.watch(step, SKIPPED)
        with pytest.raises(BadInput, match="not finite for 3 steps in a row, the last of them step 3") as error:
            guard.settle()
        assert error.value.field == "optim.lr"
        assert said == ["step 1: loss or gradient is not finite; the step is skipped"]

    def test_a_step_that_is_fine_begins_the_count_anew(self):
        said = []
        guard = Guard(2, said.append)
        for step, metrics in enumerate([SKIPPED, FINE, SKIPPED, FINE, FINE, SKIPPED], start=1):
            guard.watch(step, metrics)
        guard.settle()
        assert [line.split(":")[0] for line in said] == ["step 1", "step 3", "step 6"]
        assert guard.in_a_row == 1

    def test_a_step_is_looked_at_once(self):
        guard = Guard(2, ignore)
        guard.watch(1, SKIPPED)
        guard.settle()
        guard.settle()
        assert guard.in_a_row == 1


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def batches(self, seconds: float):
        while True:
            self.now += seconds
            yield Batch(np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, int), np.ones(1, bool))


class TestMeter:
    def test_throughput_is_of_the_interval_and_wall_time_of_all_sessions(self):
        clock = Clock()
        meter = Meter(16, 10**9, 1e12, wall=50.0, clock=clock)
        batches = clock.batches(0.5)
        for _ in range(4):
            meter.next(batches)
            clock.now += 1.5  # the step
        row = meter.row() | meter.wall
        assert row["throughput/images_per_s"] == pytest.approx(4 * 16 / 8)
        assert row["throughput/mfu"] == pytest.approx(4e9 / 8 / 1e12)
        assert row["throughput/data_wait"] == pytest.approx(0.25)
        assert row["throughput/wall_seconds"] == pytest.approx(58.0)

    def test_what_else_the_run_did_is_no_part_of_the_next_interval(self):
        clock = Clock()
        meter = Meter(16, 10**9, 1e12, clock=clock)
        meter.next(clock.batches(1.0))
        clock.now += 1000.0  # an evaluation
        meter.restart()
        meter.next(clock.batches(1.0))
        row = meter.row() | meter.wall
        assert row["throughput/images_per_s"] == pytest.approx(16.0)
        assert row["throughput/wall_seconds"] == pytest.approx(1002.0)

    def test_an_interval_in_which_no_time_passed_is_not_divided_by(self):
        meter = Meter(16, 10**9, 1e12, clock=Clock())
        meter.next(Clock().batches(0.0))
        assert np.isfinite(list(meter.row().values())).all()

    def test_an_interval_without_a_step_has_no_throughput(self):
        # The first step is the compiler's: a row right after it would say that nothing was done.
        assert Meter(16, 10**9, 1e12, clock=Clock()).row() == {}


class Number(AbstractModel):
    """A network that is one number."""

    value: float
    image_shape: tuple[int, int, int] = (1, 1, 1)
    num_classes: int | None = None
    prediction: PredictionType = "v"

    def cond(self, y=NO_CLASS):
        raise NotImplementedError

    def __call__(self, x, cond, view=None, *, key=None):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Value(AbstractEvaluator):
    """Reports the number."""

    every: int = 4
    weights: Literal["raw", "ema"] = "raw"
    with_untrained: bool = False

    def build(self, context):
        def evaluate(model: Number, key):
            scalars = {"value": model.value, "raw_pixels/value": 5.0, "key": float(jax.random.uniform(key))}
            return Report(scalars, {"picture": np.zeros((2, 2, 3), np.uint8)})

        return evaluate

    @property
    def measures_untrained(self) -> bool:
        return self.with_untrained

    def is_baseline(self, name: str) -> bool:
        return name.startswith("raw_pixels/")


def evaluations(
    *, init_model=lambda: Number(-1.0), last: int = 10, measured: Iterable[str] = (), **evaluators: Value
) -> Evaluations:
    built = {name: (evaluator, evaluator.build(None)) for name, evaluator in evaluators.items()}
    return Evaluations(built, jax.random.key(0), last=last, init_model=init_model, measured_untrained=measured)


def state(model: float, ema: float | None = None) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, Number(model), None if ema is None else Number(ema), None, zero)


def ignore(text: str) -> None:
    pass


class TestEvaluations:
    def test_each_is_due_at_its_own_steps_and_at_the_end(self):
        due = evaluations(a=Value(every=4), b=Value(every=5)).due
        assert {step: due(step) for step in range(1, 11) if due(step)} == {
            4: ["a"],
            5: ["b"],
            8: ["a"],
            10: ["a", "b"],
        }

    @pytest.mark.parametrize(("weights", "ema", "measured"), [("raw", 3.0, 2.0), ("ema", 3.0, 3.0), ("ema", None, 2.0)])
    def test_the_average_is_measured_where_it_is_asked_for_and_kept(self, weights, ema, measured):
        row, pictures = evaluations(a=Value(weights=weights)).measure(["a"], state(2.0, ema), ignore)
        assert row["eval/a/value"] == measured
        assert list(pictures) == ["a/picture"]

    def test_the_first_weights_are_measured_once_and_the_pixels_not_again(self):
        made = []

        def first() -> Number:
            made.append(1)
            return Number(-1.0)

        several = evaluations(a=Value(), b=Value(with_untrained=True), init_model=first)
        row, _ = several.measure(["a"], state(2.0), ignore)
        assert made == []  # a has nothing to beat
        row, _ = several.measure(["a", "b"], state(2.0), ignore)
        assert {name: x for name, x in row.items() if "untrained" in name and "key" not in name} == {
            "eval/untrained/b/value": -1.0
        }
        again, _ = several.measure(["a", "b"], state(2.0), ignore)
        assert not any("untrained" in name for name in again)
        assert made == [1]

    def test_a_run_that_has_measured_them_does_not_again(self):
        both = evaluations(a=Value(with_untrained=True), b=Value(with_untrained=True), measured={"a"})
        row, _ = both.measure(["a", "b"], state(2.0), ignore)
        # ... but another evaluation, that came to the run later, has a line of its own.
        assert {name.split("/")[2] for name in row if "untrained" in name} == {"b"}

    def test_every_evaluation_has_the_same_randomness(self):
        several = evaluations(a=Value(with_untrained=True), b=Value())
        row, _ = several.measure(["a", "b"], state(2.0), ignore)
        later, _ = several.measure(["a"], state(9.0), ignore)
        assert len({row["eval/a/key"], row["eval/b/key"], row["eval/untrained/a/key"], later["eval/a/key"]}) == 1


class NotANumber(MaskedDenoising):
    """An objective that divides by zero."""

    def loss(self, model, path, batch, draw):
        loss, terms = super().loss(model, path, batch, draw)
        return loss * jnp.nan, terms


@pytest.mark.usefixtures("one_device")
def test_a_run_whose_loss_is_no_number_stops_with_its_weights_as_they_were(tmp_path, capsys):
    objective = NotANumber((Term("x0", "hidden", 1.0),), 0.5)
    recipe = lambda: tiny(objective=objective, eval={}, max_skipped=5)  # noqa: E731
    with pytest.raises(SystemExit) as end:
        main({"broken": recipe}, ["--run-dir", str(tmp_path / "run")])
    out, error = capsys.readouterr()
    assert end.value.code == 2
    assert out.count("warning: step 1: loss or gradient is not finite; the step is skipped") == 1
    assert error.startswith("error: --optim.lr: loss or gradient was not finite for 5 steps in a row")
    assert "Use a smaller learning rate" in error
    assert len(error.splitlines()) == 1
    written = rows(tmp_path / "run")
    assert [row["step"] for row in written] == [1, 2, 3, 4, 5, 6][: len(written)]
    assert all(row["train/loss"] is None and row["train/skipped"] == 1 for row in written)
    assert [row["train/skipped_total"] for row in written] == [row["step"] for row in written]
    # What was saved meanwhile is finite: nothing of those steps came into it.
    saved = arrays(tmp_path / "run", recipe())
    assert all(np.isfinite(array).all() for array in saved.values())
    assert saved[".skipped"] == saved[".step"] == 4


def test_a_failed_save_ends_the_run_before_its_next_step(tmp_path, one_device, monkeypatch):
    trained, train_step, failed = [], loop.train_step, threading.Event()

    def counted(parts, state, batch):
        trained.append(int(state.step))
        result = train_step(parts, state, batch)
        assert len(trained) < 3 or failed.wait(60)  # the save is of step 2, and fails during step 3
        return result

    def fail(folder):
        if folder.name == "2":
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        return {}

    def require_saved(self):
        if failed.is_set() and self._sealed is not None:
            self._sealed.exception(60)
        return required(self)

    required = Checkpoints.require_saved
    monkeypatch.setattr(Checkpoints, "require_saved", require_saved)
    monkeypatch.setattr(loop, "train_step", counted)
    monkeypatch.setattr(checkpoint, "_digests", fail)
    with pytest.raises(BadInput, match="Input/output error") as error:
        run(tiny(eval={}), run_dir=tmp_path / "run", limit_steps=6)
    assert error.value.field == "run_dir"
    assert trained == [0, 1, 2]
