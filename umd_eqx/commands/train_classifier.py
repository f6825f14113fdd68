"""`experiments/train_classifier.py`: trains the small classifier whose features define `fd_fashion`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from umd_eqx.commands.leaves import KINDS, parse
from umd_eqx.commands.training import Command, describe_presets, split_preset, train
from umd_eqx.core.errors import BadInput, disk_errors
from umd_eqx.core.files import write_atomically
from umd_eqx.core.processes import is_first
from umd_eqx.models.extractors.fashion import CLASSIFIER_FILE, card_of
from umd_eqx.recipes.classifier import CLASSIFIERS
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.runs.workspace import default_run_dir

FLAG_ALIASES = {
    "--steps": "--optim.steps",
    "--lr": "--optim.lr",
    "--warmup": "--optim.warmup",
    "--weight-decay": "--optim.weight-decay",
    "--batch-size": "--data.batch-size",
    "--area-min": "--data.area-min",
    "--flip": "--data.flip",
    "--no-flip": "--data.no-flip",
    "--train-split": "--data.train-split",
    "--test-split": "--data.test-split",
}
"""Short aliases of flags: the names from before this command was an ordinary training run."""


@dataclasses.dataclass(frozen=True)
class TrainClassifier(Command):
    """The flags of the classifier's training command."""

    out: str | None = None
    """Copy the trained weights to this .safetensors file, with their card. None: only the run directory holds them."""


def train_classifier(words: list[str], presets: Mapping[str, Preset] = CLASSIFIERS) -> int:
    """Runs the command and returns its exit code.

    A finished run writes the weights to `fashion_classifier.safetensors` in its directory, with their card.

    **Raises:** `BadInput` naming the invalid flag, before anything is computed; also if the output file exists.
    """
    name, flags = split_preset(presets, [_without_alias(word) for word in words])
    recipe = presets[name]()
    short = ", ".join(flag for flag in FLAG_ALIASES if not flag.startswith("--no-"))
    what = (
        "Train the small Fashion-MNIST classifier whose features define fd_fashion. "
        f"These flags have short names: {short}."
    )
    description = describe_presets(what, presets, name)
    command = parse(TrainClassifier, flags, KINDS, default=TrainClassifier(recipe), description=description)
    out = None if command.out is None else _output_file(command.out)
    directory = Path(command.run_dir or default_run_dir(name, command.config, recipe))
    code = train(command, name, recipe, lambda *_: directory)
    if code or out is None or command.print_config or command.dry_run or not is_first():
        return code
    with disk_errors(out.parent, "out", on_retry="it copies the files"):
        for source, copy in ((card_of(directory / CLASSIFIER_FILE), card_of(out)), (directory / CLASSIFIER_FILE, out)):
            write_atomically(copy, source.read_bytes())
    print(f"copied to {out}, {card_of(out)}")
    return code


def _without_alias(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{FLAG_ALIASES.get(flag.replace('_', '-'), flag)}{equals}{value}"


def _output_file(name: str) -> Path:
    out = Path(name)
    if out.suffix != ".safetensors":
        raise BadInput("out", f"{out} does not end in .safetensors", "Choose a name that does")
    for existing in (out, card_of(out)):
        if existing.exists():
            raise BadInput("out", f"{existing} already exists", "Choose another name, or delete it")
    if not out.absolute().parent.is_dir():
        raise BadInput("out", f"there is no folder {out.parent}", "Create it, or choose another")
    return out
