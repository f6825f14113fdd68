"""Profiles of some steps of a run, for xprof and Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.processes import is_first
from umd_eqx.core.remote import reason

FOLDER = "profile"
"""The folder of profiles in a run directory."""


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are profiled: those after step `begin`, up to and including step `end`."""

    begin: Annotated[int | None, tyro.conf.arg(name="from")] = None
    """Number of steps before the profile begins. None: nothing is profiled."""
    end: Annotated[int | None, tyro.conf.arg(name="to")] = None
    """Last step of the profile, which is written to the folder profile/ of the run, for xprof and Perfetto."""

    @property
    def steps(self) -> range:
        """The indices of the profiled steps, from 0; empty if nothing is profiled."""
        return range(0) if self.begin is None or self.end is None else range(self.begin, self.end)

    def validate(self, total: int) -> None:
        """Raises `BadInput` naming a field of `profile` unless the steps lie within a run of `total` steps."""
        if (self.begin is None) != (self.end is None):
            missing, given = ("to", "from") if self.end is None else ("from", "to")
            hint = f"Give both, or leave out `profile.{given}`"
            raise BadInput(f"profile.{missing}", f"it is missing beside `profile.{given}`", hint)
        if self.begin is None or self.end is None:
            return
        if self.begin < 0:
            raise BadInput("profile.from", f"{self.begin} is negative", "Use 0 or more")
        if self.end <= self.begin:
            problem = f"{self.end} is not after `profile.from={self.begin}`"
            raise BadInput("profile.to", problem, f"Use {self.begin + 1} to profile a single step")
        if self.end > total:
            problem = f"{self.end} is after the last step of the run, {total}"
            raise BadInput("profile.to", problem, f"Use at most {total}")


class Profile:
    """Context manager in which the steps of a `ProfileConfig` are traced, by this process.

    A run that starts after the first of them profiles the rest. The trace ends once the devices have finished its last
    step, or where the run ends.

    **Arguments:**

    - `config`: the steps.
    - `run_dir`: the run directory, in which a folder for each profile is made: `profile/plugins/profile/<time>/`.
    - `start`: the number of steps that the run has made already.
    - `say`: called with lines of text.
    """

    def __init__(
        self,
        config: ProfileConfig,
        run_dir: Path,
        start: int,
        say: Callable[[str], None],
    ):
        # In each of several processes, the trace would be of its own devices, and the files would have the same names.
        self._steps = config.steps if is_first() else range(0)
        self._folder, self._start, self._say = run_dir / FOLDER, start, say
        self._began: int | None = None
        self._done = start

    def __enter__(self) -> "Profile":
        if self._steps and self._start >= self._steps.stop:
            steps = f"{self._steps.start} to {self._steps.stop}"
            self._say(f"warning: steps {steps} are not profiled: the run is resumed after them, at step {self._start}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._began is not None:
            with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
                self._stop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """A context for one training step: `step` is the number of steps before it."""
        if step in self._steps and self._began is None:
            self._start_trace(step)
        if self._began is None:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        self._done = step + 1
        if self._done == self._steps.stop:
            self._stop()

    def _start_trace(self, step: int) -> None:
        self._settle()
        try:
            with disk_errors(self._folder):
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._began = step
        except RuntimeError as error:  # another profiler is at work
            self._say(f"warning: nothing is profiled: {reason(error)}")
            self._steps = range(0)

    def _stop(self) -> None:
        self._settle()
        first, self._began = self._began, None
        with disk_errors(self._folder):
            jax.profiler.stop_trace()
        written = sorted(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
        where = written[-1] if written else self._folder
        self._say(
            f"profiled step {first} to {self._done}: open {where} at https://ui.perfetto.dev, or all with "
            f"`pip install xprof` and `xprof --logdir {self._folder}`"
        )

    def _settle(self) -> None:
        # Steps are dispatched before earlier ones have finished; their results are arrays in use.
        jax.block_until_ready(jax.live_arrays())
