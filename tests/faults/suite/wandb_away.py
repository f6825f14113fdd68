"""Weights & Biases that cannot be reached, and secrets in the environment that may appear in no file."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.suite.apart import apart
from faults.suite.base import Fault, Outcome, Trial
from faults.suite.observed import observed_run
from faults.tiny import tiny

CANARY = "c0ffee"
SECRETS = {
    # A key of wandb has forty characters.
    "WANDB_API_KEY": f"{CANARY}1" + "0" * 33,
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}2wJalrXUtnFEMI",
    "AWS_SESSION_TOKEN": f"{CANARY}3FwoGZXIvYXdz",
    "HF_TOKEN": f"hf_{CANARY}4abcdef",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": f"{CANARY}5",
    "KAGGLE_KEY": f"{CANARY}6",
}
STEPS = 8


def trained(run_dir: str, wandb: bool, steps: int, exported: bool) -> dict[str, Any]:
    """In a process of its own: a run that is logged to wandb or not; then, if `exported`, its export and samples."""
    import dataclasses
    import os

    from umd_eqx.commands.cli import main
    from umd_eqx.recipes.config import LogConfig
    from umd_eqx.recipes.pretrain import PRETRAIN

    config = dataclasses.replace(tiny(optim__steps=steps), log=LogConfig(every=1, wandb=wandb))
    seen = observed_run(config, Path(run_dir))
    os.chdir(Path(run_dir).parent)
    for words in (
        ["export", "--run", run_dir, "--out", f"{run_dir}-weights.safetensors"],
        ["sample", "--run", run_dir, "--num", "4", "--batch-size", "4", "--steps", "2", "--out", f"{run_dir}.png"],
    )[: 2 * exported]:
        try:
            main(PRETRAIN, words)
        except SystemExit as end:
            seen[words[0]] = end.code
    return seen


def with_canary(folder: Path) -> list[str]:
    """The files below a folder whose name or content has the canary in any case, also as UTF-16 or compressed text."""
    pattern = re.compile(CANARY.encode(), re.IGNORECASE)
    found = []
    for path in sorted(folder.rglob("*")):
        held = b"" if not path.is_file() else path.read_bytes()
        if pattern.search(held) or pattern.search(held.replace(b"\0", b"")) or CANARY in path.name:
            found.append(str(path.relative_to(folder)))
    return found


def closed_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def unreachable(folder: Path, steps: int, exported: bool) -> Outcome:
    """A run that cannot reach its server equals one that does not ask for it, and no file has one of the secrets."""
    home = folder / "home"
    home.mkdir()
    environment = SECRETS | {
        "WANDB_BASE_URL": f"http://127.0.0.1:{closed_port()}",
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
        "WANDB_INIT_TIMEOUT": "5",
    }
    away = apart(trained, folder, str(folder / "away"), True, steps, exported, environment=environment)
    plain = apart(trained, folder, str(folder / "plain"), False, steps, False, environment={"HOME": str(home)})
    ours, theirs = away.result(), plain.result()
    # What is compared is kept in memory, and what is searched is everything in the folder.
    found = with_canary(folder)
    said = CANARY in away.said or CANARY in str(ours)
    facts = {
        "wandb was not asked": "wandb: " in ours["said"],
        "another state": ours["last"] == theirs["last"] and ours["saved"] == theirs["saved"],
        "other losses": ours["rows"] == theirs["rows"] and len(ours["rows"]) == steps,
        f"an error {ours['error']}": ours["error"] is None
        and all(ours.get(name, 0) == 0 for name in ("export", "sample")),
        "nothing was exported": exported == (folder / "away-weights.safetensors").exists(),
        f"the canary is in {', '.join(found[:5])}": not found,
        "the canary was printed": not said,
    }
    wrong = [what for what, holds in facts.items() if not holds]
    files = sum(path.is_file() for path in folder.rglob("*"))
    figures = {"canaries": len(found) + said, "files": files, "seconds": away.seconds}
    return Outcome(not wrong, "; ".join(wrong), figures)


def trials(quick: bool) -> list[Trial]:
    """One run with a closed port."""
    return [Trial("closed-port", lambda folder: unreachable(folder, 4 if quick else STEPS, not quick))]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts runs and files."""
    equal = sum(o.passed for o in outcomes)
    canaries, files = (sum(int(o.figures.get(name, 0)) for o in outcomes) for name in ("canaries", "files"))
    return f"training equal {equal}/{len(outcomes)}; canary found in {canaries} of {files} files"


FAULT = Fault("wandb", "W&B unreachable; a canary secret in the environment", trials, summary)
