"""The terminal output of a run: a progress bar in a terminal, plain lines in a file or a pipe."""

import io
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsFloat

from umd_eqx.report.stream import SafeStream

TRAINING = "training"


class Terminal:
    """A context manager that displays the progress of a run. Failures of the terminal never interrupt training.

    In a terminal, a progress bar is shown below the printed lines. Otherwise, a plain line is printed immediately, then
    at most one every `interval` seconds and one for the last step. The remaining time is estimated from the last steps,
    excluding pauses for evaluation.

    **Arguments:**

    - `total`: the step at which the run will end.
    - `start`: the first step, 0 .. total.
    - `work`, `unit`: the names of the work and of one step of it.
    - `stream`: the output stream; None is the current stdout.
    - `interactive`: whether the stream is a terminal; None detects it.
    - `interval`: the seconds between plain lines.
    - `clock`: a monotonic clock in seconds; tests pass another one.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        work: str = TRAINING,
        unit: str = "step",
        stream: io.TextIOBase | None = None,
        interactive: bool | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._work, self._unit = total, work, unit
        self._out = SafeStream(stream if stream is not None else sys.stdout)
        dumb = os.environ.get("TERM") == "dumb"
        self._interactive = self._out.isatty() and not dumb if interactive is None else interactive
        self._interval = interval
        self._clock = clock
        self._pace = _Pace(start, clock)
        self._phase = work
        self._step = start
        self._row: dict[str, float] = {}
        self._pending = False
        self._printed_at = -math.inf
        self._bar: Any = None  # a rich.progress.Progress, while it is shown
        self._task: Any = None

    def __enter__(self) -> "Terminal":
        if self._interactive:
            self._bar = _bar(self._out)
            self._task = self._bar.add_task(self._phase, total=self._total, completed=self._step, stats="")
            self._bar.start()
        self._pace.resume()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._pending:
            self._line()

    def update(self, step: int, row: Mapping[str, SupportsFloat]) -> None:
        """Displays the progress of the run, and ends the current phase.

        **Arguments:**

        - `step`: the number of completed steps, up to the total.
        - `row`: metrics by name, of which `train/loss`, `throughput/images_per_s`, `throughput/mfu` and
          `throughput/data_wait` are shown if present.
        """
        self._pace.reach(step)
        self._phase, self._step = self._work, step
        self._row = {name: float(row[name]) for name in _SHOWN if name in row}
        self._pending = True
        if self._bar is not None:
            self._draw()
        elif step >= self._total or self._clock() - self._printed_at >= self._interval:
            self._line()

    def phase(self, text: str, step: int | None = None) -> None:
        """Displays the current phase of the run. The time until `work` continues does not affect the remaining time.

        **Arguments:**

        - `text`: a few words, such as `"compiling"` or `"evaluating fewshot"`. The text of `work` restarts the clock,
          and so does the next `update`, which is then not used to estimate the speed.
        - `step`: the number of completed steps, if more than in the last `update`.
        """
        self._step = self._step if step is None else step
        if text == self._work:
            self._pace.resume()
        else:
            self._pace.pause()
        # The text after a colon is a counter, which is printed as often as other numbers.
        changed, self._phase = text.partition(":")[0] != self._phase.partition(":")[0], text
        if self._bar is not None:
            self._draw()
        elif text != self._work and (changed or self._clock() - self._printed_at >= self._interval):
            self._print(f"{self._unit} {self._step}/{self._total}  {text}")
            self._printed_at = self._printed_at if changed else self._clock()

    def print(self, text: str) -> None:
        """Prints a permanent line.

        **Arguments:**

        - `text`: plain text; markup has no effect.
        """
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a permanent line, marked as a warning.

        **Arguments:**

        - `text`: as for `print`.
        """
        self._print(f"warning: {text}", style="yellow")

    def _line(self) -> None:
        eta = self._pace.remaining(self._total - self._step)
        fields = [text for _, text in _fields(self._row, eta)]
        self._print("  ".join([f"{self._unit} {self._step}/{self._total}", *fields]))
        self._pending = False
        self._printed_at = self._clock()

    def _print(self, text: str, style: str = "") -> None:
        if self._bar is None:
            self._out.write(f"{text}\n")
            self._out.flush()
            return
        from rich.text import Text

        self._bar.console.print(Text(text, style=style), soft_wrap=True)

    def _draw(self) -> None:
        # Drops the least important fields if space is short, as rich would truncate a field.
        counts = f"{self._step}/{self._total}"
        room = self._bar.console.width - len(self._phase) - len(counts) - 18
        fields = _fields(self._row, self._pace.remaining(self._total - self._step))
        shown = set()
        for importance, text in sorted(fields):
            if len(text) + 2 <= room:
                room -= len(text) + 2
                shown.add(importance)
        stats = "  ".join(text for importance, text in fields if importance in shown)
        self._bar.update(self._task, description=self._phase, completed=self._step, stats=stats)


_SHOWN = ("train/loss", "throughput/images_per_s", "throughput/mfu", "throughput/data_wait")


class _Field(NamedTuple):
    importance: int  # 0 is dropped last
    text: str


def _fields(row: Mapping[str, float], eta: float | None) -> list[_Field]:
    """Returns the fields of a line in display order."""
    fields = []
    if "train/loss" in row:
        fields.append(_Field(0, f"loss {row['train/loss']:.4f}"))
    if "throughput/images_per_s" in row:
        rate = row["throughput/images_per_s"]
        fields.append(_Field(2, f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"))
    if "throughput/mfu" in row:
        fields.append(_Field(3, f"mfu {row['throughput/mfu']:.2f}"))
    if "throughput/data_wait" in row:
        fields.append(_Field(4, f"wait {row['throughput/data_wait']:.0%}"))
    if eta is not None:
        fields.append(_Field(1, f"eta {duration(eta)}"))
    return fields


def duration(seconds: float) -> str:
    """Formats a duration with at most two units: `12s`, `4m12s`, `2h05m`, `3d04h`.

    **Arguments:**

    - `seconds`: the duration, finite and not negative.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


class _Pace:
    """Estimates the time per step from the last updates, excluding pauses."""

    def __init__(self, step: int, clock: Callable[[], float]):
        self._clock = clock
        self._step = step
        self._running_since: float | None = None
        self._spent = 0.0
        self._paused = True
        self._recent: deque[tuple[int, float]] = deque(maxlen=30)  # (steps, seconds) between updates

    def resume(self) -> None:
        if self._running_since is None:
            self._running_since = self._clock()
            self._paused = False

    def pause(self) -> None:
        if self._running_since is not None:
            self._spent += self._clock() - self._running_since
            self._running_since = None
            self._paused = True

    def reach(self, step: int) -> None:
        was_paused = self._paused
        self.pause()
        # After a pause, the share of the time that was spent on steps is unknown.
        if step > self._step and not was_paused:
            self._recent.append((step - self._step, self._spent))
        self._step, self._spent = step, 0.0
        self.resume()

    def remaining(self, steps: int) -> float | None:
        """Returns the estimated seconds for the given number of steps, or None before the first measurement."""
        if not self._recent:
            return None
        typical = statistics.median(seconds / count for count, seconds in self._recent)
        # Stalls (a checkpoint, a busy disk) are dropped; smaller variations in speed are averaged.
        kept = [(count, seconds) for count, seconds in self._recent if seconds / count <= 3 * typical]
        return max(0, steps) * sum(seconds for _, seconds in kept) / sum(count for count, _ in kept)


def _bar(out: SafeStream) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(file=out, force_terminal=True, highlight=False, markup=False, emoji=False)  # pyright: ignore[reportArgumentType]
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
        TextColumn("{task.completed}/{task.total}", markup=False),
        TextColumn("{task.fields[stats]}", markup=False),
        console=console,
        expand=True,
        refresh_per_second=4,
    )
