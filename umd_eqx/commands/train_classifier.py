"""`experiments/train_classifier.py`: the small classifier whose features generated images are compared in."""

import dataclasses
import importlib.metadata
import shlex
import time
from pathlib import Path

import tyro

from umd_eqx.data.source import open_source
from umd_eqx.errors import BadInput, disk_errors
from umd_eqx.models.fashion import card_of, save_fashion_classifier
from umd_eqx.report import Terminal
from umd_eqx.supervised import ClassifierRecipe, accuracy, train_classifier
from umd_eqx.types import Metrics

DATA = "fashion_mnist"
EVERY = 50
"""Steps between two looks at the loss: each waits for the device."""


@dataclasses.dataclass(frozen=True)
class TrainClassifier:
    """Train the classifier from nothing, measure it, and write its weights with their card."""

    recipe: tyro.conf.OmitArgPrefixes[ClassifierRecipe] = dataclasses.field(default_factory=ClassifierRecipe)
    out: str = "fashion_classifier.safetensors"
    """Where the weights go; the card goes beside it."""
    train_split: str = "train"
    """What is trained on; a part is written train[:10%]."""
    test_split: str = "test"
    """What is measured on."""


def train(words: list[str]) -> int:
    """Runs the command; gives its exit code.

    10 minutes of one CPU core. It keeps no checkpoints: a run that is interrupted begins anew.

    **Raises:** `BadInput` naming the flag at fault, before anything is computed; an existing file is one.
    """
    description = "Train the small classifier of Fashion-MNIST: its features are what fd_fashion is measured in."
    command = tyro.cli(TrainClassifier, args=words, description=description)
    command.recipe.validate()
    out = _free(command.out)
    source = open_source(DATA, None, command.train_split, field="--train-split")
    test = open_source(DATA, None, command.test_split, field="--test-split")
    began = time.perf_counter()
    with Terminal(command.recipe.steps) as terminal:
        terminal.phase("compiling")
        model = train_classifier(command.recipe, source, _Progress(terminal, command.recipe))
        terminal.phase("measuring")
        found = accuracy(model, test)
    facts = {
        "test_accuracy": found,
        "recipe": dataclasses.asdict(command.recipe),
        "data": {"name": DATA, "train": command.train_split, "test": command.test_split, "test_images": len(test)},
        "command": _again(command),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")},
    }
    with disk_errors(out.parent, "--out", goes_on=""):
        card = save_fashion_classifier(model, out, facts)
    print(f"{found:.2%} of {len(test):,} test images recognised, {time.perf_counter() - began:.0f} s: {out}, {card}")
    return 0


def _free(name: str) -> Path:
    out = Path(name)
    if out.suffix != ".safetensors":
        raise BadInput("--out", f"{out} is no name for weights", "Let it end in .safetensors")
    for existing in (out, card_of(out)):
        if existing.exists():
            raise BadInput("--out", f"{existing} exists already", "Choose another name, or delete it")
    if not out.absolute().parent.is_dir():
        raise BadInput("--out", f"there is no folder {out.parent}", "Make it, or choose another")
    return out


def _again(command: TrainClassifier) -> str:
    """The command line that makes the same weights."""
    changed = ["python", "experiments/train_classifier.py"]
    for owner, usual in ((command.recipe, ClassifierRecipe()), (command, TrainClassifier())):
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            if field.name in ("recipe", "out") or value == getattr(usual, field.name):
                continue
            flag = field.name.replace("_", "-")
            changed += (
                [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
            )
    return shlex.join(changed)


class _Progress:
    """Shows the loss and the pace of the first step, of every fiftieth and of the last."""

    def __init__(self, terminal: Terminal, recipe: ClassifierRecipe):
        self._terminal, self._recipe = terminal, recipe
        self._step, self._since = 0, time.perf_counter()

    def __call__(self, step: int, metrics: Metrics) -> None:
        if step % EVERY and step not in (1, self._recipe.steps):
            return
        loss, now = float(metrics["loss"]), time.perf_counter()
        rate = (step - self._step) * self._recipe.batch_size / (now - self._since)
        self._step, self._since = step, now
        self._terminal.update(step, {"train/loss": loss, "throughput/images_per_s": rate})
