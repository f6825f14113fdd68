"""The house keeps its floors: what a module may import, and where each heavy library may be imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "umd_eqx"

# A module imports from lower floors, or from its own folder. A folder's number holds for all in it.
FLOORS = {
    "types": 0,
    "errors": 0,
    "files": 0,
    "display": 0,
    "hashes": 0,
    "tables": 0,
    "masking": 0,
    "paths": 0,
    "predictions": 0,
    "tensors": 0,
    "cards": 0,
    "models": 1,
    "objectives": 2,
    "sampling": 2,
    "data": 2,
    "optim": 2,
    "optimisers": 2,
    "sharding": 2,
    "flops": 2,
    "programs": 0,
    "eval": 3,
    "train": 3,
    "trainable": 2,
    "checkpoint": 3,
    "report": 3,
    "signals": 2,
    "config": 4,
    "presets": 4,
    "dump": 4,
    "leaves": 4,
    "upgrade": 3,
    "dryrun": 4,
    "memory": 4,
    "workspace": 4,
    "loop": 4,
    "run": 4,
    "remeasure": 4,
    "card_checks": 4,
    "pretrained": 4,
    "resolved": 4,
    "batches": 4,
    "finetuning": 4,
    "derived": 4,
    "classifier_training": 4,
    "latents": 3,
    "finishing": 4,
    "tokenizers": 4,
    "tokenizer_training": 4,
    "encoding": 4,
    "cli": 6,
    "commands": 5,
}

# What stands on one floor and leans on a neighbour all the same: (importer, imported).
NEIGHBOURS = {
    ("masking", "types"),  # the vocabulary of shapes
    ("paths", "types"),
    ("paths", "tables"),
    ("paths", "errors"),
    ("predictions", "types"),
    ("predictions", "paths"),  # its conversions
    ("tensors", "errors"),
    ("tensors", "files"),
    ("tensors", "hashes"),
    ("cards", "errors"),  # beside what `models/` keeps on the disk
    ("cards", "files"),
    ("cards", "hashes"),
    ("cards", "tensors"),
    ("card_checks", "config"),
    ("resolved", "config"),
    ("resolved", "pretrained"),
    ("resolved", "tokenizers"),
    ("finishing", "config"),
    ("finishing", "dump"),
    ("dryrun", "resolved"),
    ("finetuning", "resolved"),
    ("batches", "resolved"),
    ("run", "batches"),
    ("run", "finishing"),
    ("run", "resolved"),
    ("pretrained", "card_checks"),
    ("tokenizers", "card_checks"),
    ("workspace", "presets"),  # which of them a run is nearest to
    ("sampling", "sharding"),  # batches of samples over the devices
    ("optimisers", "optim"),  # the base of each
    ("leaves", "dump"),
    ("flops", "objectives"),  # the passes that a batch takes
    ("checkpoint", "train"),  # holds a TrainState
    ("presets", "config"),
    ("dump", "config"),
    ("dryrun", "config"),
    ("dryrun", "memory"),
    ("memory", "config"),
    ("memory", "tokenizers"),
    ("workspace", "config"),
    ("workspace", "dump"),
    ("finishing", "classifier_training"),
    ("run", "config"),
    ("run", "dump"),
    ("run", "loop"),
    ("run", "remeasure"),
    ("remeasure", "dump"),
    ("run", "pretrained"),
    ("pretrained", "config"),
    ("pretrained", "dump"),
    ("pretrained", "tokenizers"),
    ("tokenizers", "config"),
    ("tokenizers", "dump"),
    ("tokenizer_training", "config"),
    ("tokenizer_training", "presets"),
    ("classifier_training", "config"),
    ("classifier_training", "dump"),
    ("classifier_training", "presets"),
    ("derived", "config"),
    ("derived", "dump"),
    ("derived", "presets"),
    ("derived", "pretrained"),
    ("finetuning", "config"),
    ("finetuning", "derived"),
    ("finetuning", "presets"),
    ("finetuning", "pretrained"),
    ("run", "workspace"),
}

# Where a library that costs a second to import, or a service, may be named.
CONFINED = {
    "tensorflow": set(),
    "wandb": {"report"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "PIL": {"data", "report"},
}


def room(module: str) -> str:
    """The file or folder right under the package: `umd_eqx.eval.base` is in the room `eval`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def modules(folder: Path) -> dict[str, Path]:
    """Every Python file by its dotted name."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(source: str, module: str = "") -> list[str]:
    """Everything that a file imports, wherever in it, by absolute names; `from a import b` gives `a.b`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports out, so that they can be read and checked"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def complaints(module: str, imported: list[str]) -> list[str]:
    """Which imports of a module of the package break a floor or leave their room."""
    here, said = room(module), []
    if module == PACKAGE:
        return [f"{module} imports {name}: it is read before everything else" for name in imported if PACKAGE in name]
    if here not in FLOORS:
        return [f"{module} stands on no floor: give {here!r} one in FLOORS (see design.md, Rooms)"]
    for name in imported:
        library = name.split(".")[0]
        if here not in CONFINED.get(library, {here}):
            allowed = " or ".join(sorted(CONFINED[library])) or "nowhere"
            said.append(f"{module} imports {library}, which belongs in: {allowed}")
        if library != PACKAGE or room(name) == here:
            continue
        there = room(name)
        if there not in FLOORS:
            said.append(f"{module} imports {name}, which stands on no floor: give {there!r} one in FLOORS")
        elif FLOORS[there] >= FLOORS[here] and (here, there) not in NEIGHBOURS:
            said.append(f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return said


MODULES = modules(ROOT / PACKAGE)


def test_the_rooms_are_found():
    assert {"umd_eqx", "umd_eqx.types", "umd_eqx.models", "umd_eqx.models.layers", "umd_eqx.train"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below_or_from_its_own_room(module):
    assert complaints(module, imports(MODULES[module].read_text(), module)) == []


def test_every_exception_is_needed():
    # An exception that nothing uses would let the next import in unseen.
    used = {
        (room(module), room(name))
        for module, path in MODULES.items()
        for name in imports(path.read_text(), module)
        if name.split(".")[0] == PACKAGE
    }
    assert used >= NEIGHBOURS
    # ... and no two rooms lean on each other, not even through a third.
    edges = {pair for pair in used if pair[0] != pair[1]}
    order = sorted({name for pair in edges for name in pair})
    while order:
        free = [name for name in order if not any((name, other) in edges for other in order)]
        assert free, f"these import one another in a circle: {order}"
        order = [name for name in order if name not in free]


def test_commands_and_benchmarks_stand_on_the_package_and_not_under_it():
    for module, path in MODULES.items():
        outside = [name for name in imports(path.read_text(), module) if name.split(".")[0] in ("experiments", "tests")]
        assert outside == [], module
    for path in (ROOT / "experiments").rglob("*.py"):
        libraries = {name.split(".")[0] for name in imports(path.read_text(), str(path))}
        assert not libraries & {"tensorflow", "wandb", "orbax"}, path


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("umd_eqx.models.layers", "from umd_eqx.train import TrainState", "floor 1"),
        ("umd_eqx.models.layers", "def f():\n    import umd_eqx.objectives.terms", "floor 1"),
        ("umd_eqx.objectives.terms", "from umd_eqx.data.loader import x", "floor 2"),
        ("umd_eqx.eval.base", "def f():\n    import wandb", "wandb"),
        ("umd_eqx.data.source", "import tensorflow as tf", "tensorflow"),
        ("umd_eqx.novelty", "import math", "no floor"),
        ("umd_eqx.cli", "from umd_eqx.novelty import x", "no floor"),
        ("umd_eqx.cli", "from umd_eqx import novelty", "no floor"),
    ],
)
def test_a_broken_rule_is_seen(module, source, complaint):
    (said,) = complaints(module, imports(source, module))
    assert complaint in said
