"""The house keeps its floors: what a module may import, and where each heavy library may be imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "umd_eqx"

# A module imports from its own folder, and from those before it in this list.
FLOORS = (
    "core",
    "models",
    "data",
    "report",
    "objectives",
    "sampling",
    "latents",
    "eval",
    "training",
    "recipes",
    "runs",
    "commands",
)

# Where a library that costs a second to import, or a service, may be named.
CONFINED = {
    "tensorflow": set(),
    "wandb": {"report"},
    "orbax": {"training"},
    "fsspec": {"core"},
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
        return [f"{module} is in no folder of FLOORS"]
    for name in imported:
        library = name.split(".")[0]
        if here not in CONFINED.get(library, {here}):
            allowed = " or ".join(sorted(CONFINED[library])) or "nowhere"
            said.append(f"{module} imports {library}, which belongs in: {allowed}")
        if library != PACKAGE or room(name) == here:
            continue
        there = room(name)
        if there not in FLOORS:
            said.append(f"{module} imports {name}, which is in no folder of FLOORS")
        elif FLOORS.index(there) > FLOORS.index(here):
            said.append(f"{module} ({here}) imports {name}, of a later folder ({there})")
    return said


MODULES = modules(ROOT / PACKAGE)


def test_the_rooms_are_found():
    assert {
        "umd_eqx",
        "umd_eqx.core.types",
        "umd_eqx.models",
        "umd_eqx.models.vit.layers",
        "umd_eqx.training.step",
    } <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below_or_from_its_own_room(module):
    assert complaints(module, imports(MODULES[module].read_text(), module)) == []


def test_every_folder_is_there():
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == set(FLOORS)


@pytest.mark.parametrize("folder", [*FLOORS, "models/vit", "models/tokenizers", "models/extractors"])
def test_the_tests_of_a_folder_are_in_the_folder_of_the_same_name(folder):
    assert (ROOT / PACKAGE / folder).is_dir()
    assert any((ROOT / "tests" / folder).glob("**/test_*.py"))


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
        ("umd_eqx.models.vit.layers", "from umd_eqx.training.step import TrainState", "later folder (training)"),
        ("umd_eqx.models.vit.layers", "def f():\n    import umd_eqx.objectives.terms", "later folder (objectives)"),
        ("umd_eqx.data.source", "from umd_eqx.report import x", "later folder (report)"),
        ("umd_eqx.eval.base", "def f():\n    import wandb", "wandb"),
        ("umd_eqx.data.source", "import tensorflow as tf", "tensorflow"),
        ("umd_eqx.novelty", "import math", "in no folder"),
        ("umd_eqx.commands.cli", "from umd_eqx.novelty import x", "in no folder"),
        ("umd_eqx.commands.cli", "from umd_eqx import novelty", "in no folder"),
    ],
)
def test_a_broken_rule_is_seen(module, source, complaint):
    (said,) = complaints(module, imports(source, module))
    assert complaint in said
