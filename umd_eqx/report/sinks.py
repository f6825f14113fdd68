"""Where a run's numbers and pictures go: the metrics file, Weights & Biases, picture files, the closing table.

The names of the numbers are the one contract between the loop, these sinks and the page (`webpage.py`):

| name | means |
|---|---|
| `train/loss` | the objective's loss; parts with `loss` in their names join its chart (`train/denoising/loss`) |
| `train/lr`, `train/grad_norm` | of the optimiser |
| `throughput/images_per_s`, `throughput/mfu` | rate; share of the device's peak, in [0, 1] |
| `throughput/data_wait` | share of the time spent waiting for data, in [0, 1] |
| `throughput/wall_seconds` | seconds since the run began, over all its sessions |
| `eval/<evaluation>/...` | a number of an evaluation; its `umd_eqx.core.display.Display` says how it is drawn |

wandb and PIL are imported where they are used, so that a command that needs neither starts without them.
"""

import math
import netrc
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from umd_eqx.core.files import write_atomically

Pictures = Mapping[str, UInt8[np.ndarray, "rows columns 3"]]


class Wandb:
    """A run at Weights & Biases that cannot disturb the training: what goes wrong is said once, then it is silent."""

    def __init__(self, run: Any, say: Callable[[str], None], patience: float = 30.0):
        self._run = run
        self._say = say
        self._patience = patience
        self._complained = False

    @classmethod
    def maybe(
        cls,
        asked: bool,
        run_dir: str | os.PathLike[str],
        name: str,
        config: Mapping[str, Any],
        run_id: str,
        *,
        say: Callable[[str], None] | None = None,
        timeout: float = 20.0,
    ) -> "Wandb | None":
        """Start, or continue, the run called `run_id`; None if nobody wants it.

        It is wanted when `asked`, or when `WANDB_MODE` is online, offline or shared; `WANDB_MODE=disabled` always wins.
        Without a key (`WANDB_API_KEY`, or what `wandb login` stored) or without a server that answers it is kept
        offline, in `run_dir/wandb`, for `wandb sync`. `WANDB_PROJECT` (else `umd_eqx`) and `WANDB_ENTITY` say where.

        **Arguments:**

        - `asked`: whether the configuration asks for it.
        - `run_dir`: a local folder that exists.
        - `name`: what the run is shown as.
        - `config`: JSON-like settings of the run.
        - `run_id`: the same at each resumption and unlike that of any other run; of letters, digits, `-` and `_`.
        - `say`: takes the few lines there are to say; None prints them to stderr.
        - `timeout`: the seconds a server is waited for.
        """
        mode = os.environ.get("WANDB_MODE", "").strip().lower()
        if mode == "disabled" or not (asked or mode in ("online", "offline", "shared", "dryrun")):
            return None
        say = say or _to_stderr
        start = {
            "dir": os.fspath(run_dir),
            "name": name,
            "id": run_id,
            "config": dict(config),
            "resume": "allow",
            "project": os.environ.get("WANDB_PROJECT", "umd_eqx"),
        }
        try:
            return cls(_start(start, mode in ("offline", "dryrun"), timeout, say), say)
        except Exception as error:  # whatever wandb raises, the training goes on
            say(f"wandb: off for this run ({_reason(error)})")
            return None

    def log(self, step: int, row: Mapping[str, SupportsFloat]) -> None:
        """Send the numbers of one step.

        **Arguments:**

        - `step`: 0 or more; wandb drops steps earlier than one it already has.
        - `row`: as for `MetricsFile.append`.
        """
        self._guarded(lambda: self._run.log({name: float(value) for name, value in row.items()}, step=step))

    def images(self, step: int, images: Pictures) -> None:
        """Send the pictures of one step.

        **Arguments:**

        - `step`: 0 or more; not earlier than the last.
        - `images`: by slash-separated name.
        """

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(np.asarray(image)) for name, image in images.items()}, step=step)

        self._guarded(send)

    def finish(self, failed: bool = False) -> None:
        """Send what is left, for at most half a minute; the rest stays in the run directory for `wandb sync`.

        **Arguments:**

        - `failed`: whether the run ended by an error; it is then marked so.
        """

        def end() -> None:
            self._guarded(lambda: self._run.finish(exit_code=int(failed)))

        # In a thread that the end of the process does not wait for: not every wandb has a bound of its own here.
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            self._complain("not everything was sent in time; `wandb sync` sends the rest")

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever wandb raises, the training goes on
            self._complain(f"numbers are no longer sent ({_reason(error)})")

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(f"wandb: {problem}")


def _start(start: dict[str, Any], offline: bool, timeout: float, say: Callable[[str], None]) -> Any:
    """The wandb run: online if it can be, else offline with one line that says so."""
    import wandb

    wanted = {
        "init_timeout": timeout,
        "finish_timeout": 25.0,
        "silent": True,
        "console": "off",  # the terminal is ours
        "symlink": False,
    }
    known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    settings = wandb.Settings(**known)
    wandb.setup(settings)  # here too, or it announces the login before it has read `silent`
    if not offline and not _has_login(str(wandb.setup().settings.base_url)):
        say("wandb: no WANDB_API_KEY and no stored login, so the run is kept offline; `wandb sync` sends it later")
        offline = True
    if not offline:
        try:
            run = wandb.init(**start, settings=settings)
        except Exception as error:
            say(f"wandb: no answer, so the run is kept offline; `wandb sync` sends it later ({_reason(error)})")
            wandb.teardown(exit_code=0)  # its service still holds the run's id
        else:
            if run.url:
                say(f"wandb: {run.url}")
            return run
    return wandb.init(**start, settings=settings, mode="offline")


def _has_login(base_url: str) -> bool:
    # Only whether there is a key: asking wandb would open a prompt in a terminal, and nobody may be there to answer.
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(base_url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "rows columns 3"]) -> None:
    """Write a picture in one piece; one less than 500 pixels wide is enlarged as `save_pictures` says.

    Raises `OSError` if the disk refuses.
    """
    import io

    from PIL import Image

    scale = min(4, max(1, math.ceil(500 / image.shape[1])))
    large = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def save_pictures(run_dir: str | os.PathLike[str], step: int, images: Pictures) -> list[Path]:
    """Write `pictures/<name>/<step>.png` (a `/` of the name becomes `-`, the step has 8 digits), in the order given.

    A picture less than 500 pixels wide is enlarged by a whole number, at most 4, so that its pixels can be seen.

    **Arguments:**

    - `run_dir`: a local folder; `pictures/` is made as needed.
    - `step`: 0 or more.
    - `images`: by slash-separated name.

    Raises `ValueError` for a name that is no name of a folder, `OSError` if the disk refuses.
    """
    paths = []
    for name, image in images.items():
        folder = name.strip("/").replace("/", "-")
        if folder.strip(".") == "" or "\\" in folder or "\0" in folder:
            raise ValueError(f"{name!r} cannot name a picture")
        path = Path(run_dir) / "pictures" / folder / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, image)
        paths.append(path)
    return paths


def results_table(rows: Iterable[Mapping[str, Any]], headlines: Collection[str] = ()) -> str:
    """The last value of each `eval/...` number, as aligned lines for a terminal, or a line that says there is none.

    **Arguments:**

    - `rows`: what `read_metrics` gives.
    - `headlines`: the numbers that come first and are marked as such (`RunDirectory.headlines`).
    """
    last: dict[str, tuple[str, str]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("eval/"):
                last[name.removeprefix("eval/")] = ("nan" if value is None else f"{value:.4g}", str(row["step"]))
    if not last:
        return "no evaluation yet"
    first = {name.removeprefix("eval/") for name in headlines}
    ordered = sorted(last, key=lambda name: (name not in first, name))
    lines = [("evaluation", "value", "step", ""), *((n, *last[n], "headline" if n in first else "") for n in ordered)]
    name_width, value_width, step_width, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    table = (f"{n:<{name_width}}  {v:>{value_width}}  {s:>{step_width}}  {mark}" for n, v, s, mark in lines)
    return "\n".join(line.rstrip() for line in table)
