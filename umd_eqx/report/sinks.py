"""Outputs of metrics and pictures: Weights & Biases, picture files and the final table.

The training loop, the metrics file, these outputs and the page (`webpage.py`) share the names of the metrics:

| name | meaning |
|---|---|
| `train/loss` | loss of the objective; parts with `loss` in their names share its chart (`train/denoising/loss`) |
| `train/lr`, `train/grad_norm` | learning rate; norm of the gradient |
| `throughput/images_per_s`, `throughput/mfu` | images per second; share of the peak FLOP/s of the device, in [0, 1] |
| `throughput/data_wait` | share of the time spent waiting for data, in [0, 1] |
| `throughput/wall_seconds` | seconds since the start of the run, summed over resumptions |
| `eval/<evaluation>/...` | metric of an evaluation, displayed according to its `umd_eqx.core.display.Display` |

wandb and PIL are imported where they are used, which keeps them out of commands that need neither.
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
    """A Weights & Biases run whose failures never interrupt training. Only the first problem is reported."""

    def __init__(self, run: Any, notify: Callable[[str], None], patience: float = 30.0):
        self._run = run
        self._notify = notify
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
        notify: Callable[[str], None] | None = None,
        timeout: float = 20.0,
    ) -> "Wandb | None":
        """Starts or resumes the run `run_id`; returns None if it is not requested.

        It is requested by `asked`, or if `WANDB_MODE` is online, offline or shared; `WANDB_MODE=disabled` takes
        precedence. Without a key (`WANDB_API_KEY`, or stored by `wandb login`) or without a response of the server, the
        run is stored offline in `run_dir/wandb`, for `wandb sync`. `WANDB_PROJECT` (default: `umd_eqx`) and
        `WANDB_ENTITY` define the project.

        **Arguments:**

        - `asked`: whether the configuration requests it.
        - `run_dir`: an existing local folder.
        - `name`: the displayed name of the run.
        - `config`: JSON-like settings of the run.
        - `run_id`: a unique id of the run, constant over resumptions; letters, digits, `-` and `_`.
        - `notify`: called with each message; None prints to stderr.
        - `timeout`: the timeout for the server in seconds.
        """
        mode = os.environ.get("WANDB_MODE", "").strip().lower()
        if mode == "disabled" or not (asked or mode in ("online", "offline", "shared", "dryrun")):
            return None
        notify = notify or _to_stderr
        start = {
            "dir": os.fspath(run_dir),
            "name": name,
            "id": run_id,
            "config": dict(config),
            "resume": "allow",
            "project": os.environ.get("WANDB_PROJECT", "umd_eqx"),
        }
        try:
            return cls(_start(start, mode in ("offline", "dryrun"), timeout, notify), notify)
        except Exception as error:  # whatever wandb raises, training continues
            notify(f"wandb: disabled for this run ({_reason(error)})")
            return None

    def log(self, step: int, row: Mapping[str, SupportsFloat]) -> None:
        """Sends the metrics of one step.

        **Arguments:**

        - `step`: 0 or more; wandb drops steps earlier than the last one.
        - `row`: as for `MetricsFile.append`.
        """
        self._guarded(lambda: self._run.log({name: float(value) for name, value in row.items()}, step=step))

    def images(self, step: int, images: Pictures) -> None:
        """Sends the pictures of one step.

        **Arguments:**

        - `step`: 0 or more, and not earlier than the last.
        - `images`: the pictures by slash-separated name.
        """

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(np.asarray(image)) for name, image in images.items()}, step=step)

        self._guarded(send)

    def finish(self, failed: bool = False) -> None:
        """Sends the remaining data, for at most half a minute; the rest stays in the run directory for `wandb sync`.

        **Arguments:**

        - `failed`: whether the run ended with an error; it is then marked as failed.
        """

        def end() -> None:
            self._guarded(lambda: self._run.finish(exit_code=int(failed)))

        # In a daemon thread, because some versions of wandb have no timeout of their own here.
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            self._warn("sending timed out; `wandb sync` sends the rest")

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever wandb raises, training continues
            self._warn(f"metrics are no longer sent ({_reason(error)})")

    def _warn(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            self._notify(f"wandb: {problem}")


def _start(start: dict[str, Any], offline: bool, timeout: float, notify: Callable[[str], None]) -> Any:
    """Returns the wandb run: online if possible, otherwise offline with a message."""
    import wandb

    wanted = {
        "init_timeout": timeout,
        "finish_timeout": 25.0,
        "silent": True,
        "console": "off",  # keeps wandb from capturing the terminal
        "symlink": False,
    }
    known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    settings = wandb.Settings(**known)
    wandb.setup(settings)  # needed here as well, or wandb announces the login before it reads `silent`
    if not offline and not _has_login(str(wandb.setup().settings.base_url)):
        notify(
            "wandb: no WANDB_API_KEY and no stored login; the run is stored offline, and `wandb sync` sends it later"
        )
        offline = True
    if not offline:
        try:
            run = wandb.init(**start, settings=settings)
        except Exception as error:
            notify(f"wandb: no response; the run is stored offline, and `wandb sync` sends it later ({_reason(error)})")
            wandb.teardown(exit_code=0)  # its service still holds the id of the run
        else:
            if run.url:
                notify(f"wandb: {run.url}")
            return run
    return wandb.init(**start, settings=settings, mode="offline")


def _has_login(base_url: str) -> bool:
    # Only checks whether there is a key: `wandb.login` would open a prompt, possibly with no user to answer it.
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
    """Writes a picture atomically. Pictures less than 500 pixels wide are enlarged as in `save_pictures`.

    Raises `OSError` if the file cannot be written.
    """
    import io

    from PIL import Image

    scale = min(4, max(1, math.ceil(500 / image.shape[1])))
    large = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def save_pictures(run_dir: str | os.PathLike[str], step: int, images: Pictures) -> list[Path]:
    """Writes `pictures/<name>/<step>.png` (a `/` in the name becomes `-`, and the step has 8 digits) for each picture.

    Pictures less than 500 pixels wide are enlarged by an integer factor of at most 4, to make their pixels visible.

    **Arguments:**

    - `run_dir`: a local folder; `pictures/` is created as needed.
    - `step`: the step, 0 or more.
    - `images`: the pictures by slash-separated name.

    **Returns:** the paths of the files, in the order of `images`. Raises `ValueError` for a name that is not a valid
    folder name, and `OSError` if a file cannot be written.
    """
    paths = []
    for name, image in images.items():
        folder = name.strip("/").replace("/", "-")
        if folder.strip(".") == "" or "\\" in folder or "\0" in folder:
            raise ValueError(f"{name!r} is not a valid name of a picture")
        path = Path(run_dir) / "pictures" / folder / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, image)
        paths.append(path)
    return paths


def results_table(rows: Iterable[Mapping[str, Any]], headlines: Collection[str] = ()) -> str:
    """Returns the last value of each `eval/...` metric as aligned lines, or a line that states that there is none.

    **Arguments:**

    - `rows`: the rows from `read_metrics`.
    - `headlines`: the metrics that are listed first and marked as headlines (`RunDirectory.headlines`).
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
