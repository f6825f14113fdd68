"""Hostile files in every place where a command reads one: refused in one line, no code run, memory bounded."""

import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial

MOST_MB = 400.0
"""By how much the resident memory may grow while a file is refused; the largest is a tenth of this."""
MEMORY_GB = 16.0
"""The bound of the address space."""


def peak_mb() -> float:
    """The largest resident memory since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def forget_peak() -> float:
    """Makes `peak_mb` begin anew where Linux lets it; returns the peak from then on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def cases(group: str) -> Iterator[tuple[str, Any, str, list[str], str | None]]:
    """Yields what is read (its name, its maker, the name of its file), by which command, and with whose card."""
    from faults.suite import hostile_files as made

    weights = {
        "--run": (["sample", "--run"], "umd-ft"),
        "--from": (["finetune", "--from"], "umd-ft"),
        "--tokenizer": (["latent-umd", "--tokenizer"], "fashion-kl"),
        "--inception-weights": (["evaluate", "--extractor", "inception", "--inception-weights"], "fashion_classifier"),
        "--statistics": (["evaluate", "--samples", "16", "--statistics"], None),
    }
    if group == "weights":
        for name, make in {**made.WEIGHTS, **made.PICKLES}.items():
            for flag, (words, card) in weights.items():
                yield f"{name} for {flag}", make, "w.safetensors", words, card
    if group == "pickles":
        for name, make in made.PICKLES.items():
            for suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".npy"):
                yield f"{name} as {suffix} for --run", make, f"w{suffix}", ["sample", "--run"], "umd-ft"
                yield f"{name} as {suffix} for --data.dir", make, f"d{suffix}", ["umd", "--data.dir"], None
    if group == "archives":
        for name, make in {**made.ARRAYS, **made.PICKLES}.items():
            yield f"{name} as images", make, "d.npz", ["umd", "--data.dir"], None
            yield f"{name} as features", make, "f.npz", ["features", "--out"], None
        for name, make in made.TARS.items():
            yield f"{name} in a tar file", make, "d.tar", ["umd", "--data.dir"], None


def refusals(group: str, quick: bool) -> list[dict[str, Any]]:
    """In a process of its own: every case of a group, each in an empty folder of its own."""
    from faults.suite.configurations import Reached, nothing_computed
    from faults.suite.hostile_files import with_card

    from umd_eqx.commands.cli import main
    from umd_eqx.recipes.pretrain import PRETRAIN
    from umd_eqx.runs.pretrained import SHIPPED

    found, top = [], Path.cwd()
    for number, (name, make, file, words, card) in enumerate(cases(group)):
        if quick and number % 8:
            continue
        folder = top / f"{group}-{number}"
        canary, place = folder / "canary", folder / "given"
        place.mkdir(parents=True)
        os.chdir(place)
        path, size = place / file, 0
        path.write_bytes(make(str(canary)))
        size = path.stat().st_size
        if card is not None:
            with_card(path, SHIPPED.with_name(f"{card}.json"))
        kept = {entry.name for entry in place.iterdir()}
        before, began, said, code = forget_peak(), time.monotonic(), io.StringIO(), None
        try:
            with (
                nothing_computed("_measured"),
                contextlib.redirect_stderr(said),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                main(PRETRAIN, [*words, str(path)])
        except Reached:
            code = "taken"
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:300]
        seconds, grown, text = time.monotonic() - began, peak_mb() - before, said.getvalue()
        lines = [line for line in text.splitlines() if not line.startswith("warning: ")]
        facts = {
            f"not refused ({code})": code == 2,
            f"said {text[:300]!r}": len(lines) == 1 and lines[0].startswith("error: "),
            "code was run": not canary.exists(),
            "files were written": {entry.name for entry in place.iterdir()} == kept,
            f"{grown:.0f} MB for {size / 1e6:.1f} MB": grown <= MOST_MB,
            f"{seconds:.0f} s": seconds < 60,
        }
        wrong = [what for what, holds in facts.items() if not holds]
        found.append({"name": name, "wrong": wrong, "grown": grown, "seconds": seconds, "line": lines[:1]})
        os.chdir(top)
        path.unlink()
    return found


def tried(folder: Path, group: str, quick: bool = False) -> Outcome:
    """The cases of a group."""
    ended = apart(refusals, folder, group, quick, memory_gb=MEMORY_GB)
    seen = ended.result()
    wrong = [f"{it['name']}: {', '.join(it['wrong'])}" for it in seen if it["wrong"]]
    figures = {
        "tried": len(seen),
        "refused": len(seen) - len(wrong),
        "most_mb": max(it["grown"] for it in seen),
        "slowest": max(it["seconds"] for it in seen),
        "peak_mb": ended.peak_mb,
    }
    return Outcome(not wrong, "; ".join(wrong[:12]), figures)


def trials(quick: bool) -> list[Trial]:
    """A trial for each kind of file."""
    if quick:
        return [Trial("quick", lambda folder: tried(folder, "pickles", quick=True))]
    groups = ("weights", "pickles", "archives")
    return [Trial(group, lambda folder, group=group: tried(folder, group)) for group in groups]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts files, each for one flag."""
    refused, tried = (sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("refused", "tried"))
    most, peak = (max((o.figures.get(name, 0) for o in outcomes), default=0) for name in ("most_mb", "peak_mb"))
    return f"refused {refused}/{tried}, no code run; at most {most:.0f} MB for one, {peak:.0f} MB in all"


FAULT = Fault("hostile", "hostile weight files and archives", trials, summary)
