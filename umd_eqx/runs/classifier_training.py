"""Writes the weights of a finished training run of the embedded classifier."""

import importlib.metadata
import shlex
from pathlib import Path
from typing import Any

import jax

from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import place, replicated
from umd_eqx.data.source import DataSource
from umd_eqx.eval import Accuracy, EvalContext
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.extractors.fashion import load_fashion_classifier, read_card, save_fashion_classifier
from umd_eqx.recipes.build import Built
from umd_eqx.recipes.classifier import classifier
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import as_flag, differences, run_identity
from umd_eqx.training.step import TrainState

CLASSIFIER_FILE = "fashion_classifier.safetensors"
"""File name of the weights in the run directory; the card lies beside them as `.json`."""

COMMAND = ("python", "experiments/train_classifier.py")


def write_classifier(
    built: Built, run_dir: Path, step: int, state: TrainState, splits: tuple[DataSource, DataSource]
) -> Path:
    """Writes the classifier of a run into its directory, with its card.

    The weights are the averaged ones if the run keeps an average. The card records the test accuracy, the recipe, the
    data, the command that trains the same weights, and the library versions.

    **Arguments:**

    - `built`, `run_dir`: the run and its directory.
    - `step`, `state`: its last step, and the training state at that step.
    - `splits`: its training and test split.

    **Returns:** the path of the weights.
    """
    config = built.config
    model = state.model if state.ema is None else state.ema
    assert isinstance(model, FashionClassifier)
    train, test = splits
    mesh, data = built.parts.mesh, config.data
    context = EvalContext(train, test, config.path, data.size, data.eval_batch_size, mesh, threads=data.workers)
    report = Accuracy().build(context)(place(model, replicated(mesh)), jax.random.key(0))
    facts = {
        "test_accuracy": report.scalars["recognised"],
        "recipe": recipe_facts(config),
        "data": {"name": built.spec.name, "train": data.train_split, "test": data.test_split, "test_images": len(test)},
        "command": command_of(config),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")},
        "step": step,
        "weights": "raw" if state.ema is None else "ema",
    }
    save_fashion_classifier(model, run_dir / CLASSIFIER_FILE, facts)
    return run_dir / CLASSIFIER_FILE


def lacks_classifier(built: Built, run_dir: Path, step: int) -> bool:
    """Whether a run trains the embedded classifier, and its directory has no readable weights from step `step`."""
    if not isinstance(built.abstract_state().model, FashionClassifier):
        return False
    try:
        load_fashion_classifier(run_dir / CLASSIFIER_FILE)
        return read_card(run_dir / CLASSIFIER_FILE).get("step") != step
    except BadInput:
        return True


def recipe_facts(config: Config) -> dict[str, Any]:
    """The hyper-parameters of a run, by their names in a card."""
    optim, data = config.optim, config.data
    return {
        "steps": optim.steps,
        "seed": config.seed,
        "batch_size": data.batch_size,
        "lr": optim.lr,
        "warmup": optim.warmup,
        "weight_decay": optim.weight_decay,
        "area_min": data.area_min,
        "flip": data.flip,
    }


def command_of(config: Config) -> str | None:
    """The command line that trains a configuration, with a flag for each difference from the recipe.

    None if a type differs from the recipe, because no flag of the command can express that.
    """
    flags: dict[str, list[str]] = {}
    for name, (_, value) in differences(run_identity(classifier()), run_identity(config)).items():
        if name.endswith(".type"):
            return None
        names = [part for part in as_flag(name).replace("_", "-").split(".") if not part.isdecimal()]  # no indices
        if isinstance(value, bool):
            flags[f"--{'.'.join([*names[:-1], names[-1] if value else f'no-{names[-1]}'])}"] = []
        else:
            flags.setdefault(f"--{'.'.join(names)}", []).append(str(value))
    return shlex.join([*COMMAND, *(word for flag, values in flags.items() for word in (flag, *values))])
