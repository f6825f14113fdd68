"""`experiments/export.py`: writes the weights of a run as one safetensors file with a JSON card."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from umd_eqx.core.errors import disk_errors, require_writable
from umd_eqx.core.exports import card_at, new_weights, split_url, writing_weights
from umd_eqx.core.remote import is_url
from umd_eqx.runs.pretrained import Weights, export, from_pretrained
from umd_eqx.runs.tokenizers import TOKENIZER_FILE, load_tokenizer, save_tokenizer


@dataclasses.dataclass(frozen=True)
class Export:
    """Export the weights of a run."""

    run: Annotated[str, tyro.conf.arg(help="Run directory of a network or of a tokenizer.")]
    out: Annotated[
        str, tyro.conf.arg(help="File or URL to write, ending in .safetensors. Its card is written beside it.")
    ]
    weights: Weights = "ema"
    """Weights to export: raw, or ema for their moving average (raw if the run keeps none)."""
    half: bool = False
    """Store the parameters in float16: half the size."""


def export_weights(words: list[str], types: Mapping[str, type] | None = None) -> int:
    """Runs the export command and returns its exit code. Raises `BadInput` naming the invalid flag.

    `types` are user-defined classes that the run's configuration may contain.
    """
    command = tyro.cli(Export, args=words, description="Write the weights of a run as safetensors, with a JSON card.")
    if is_url(command.out):
        split_url(command.out, "out")
    else:
        require_writable("out", command.out)
    if (Path(command.run) / TOKENIZER_FILE).exists():
        return _export_tokenizer(command)
    source = from_pretrained(command.run, weights=command.weights, types=(types or {}).values())
    with disk_errors(command.out, "out", on_retry=""):
        card = export(source, command.out, half=command.half)
    print(f"{source.describe()}: {command.out}, {card}")
    return 0


def _export_tokenizer(command: Export) -> int:
    loaded = load_tokenizer(command.run, "run")
    assert loaded.config is not None
    with disk_errors(command.out, "out", on_retry=""), writing_weights(command.out, "out") as out:
        save_tokenizer(loaded.tokenizer, loaded.config, new_weights(out), loaded.facts, half=command.half)
    print(f"{loaded.title}: {command.out}, {card_at(command.out)}")
    return 0
