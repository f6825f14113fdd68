"""Small networks to sample from, exported as a user would find them."""

from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from umd_eqx.commands.cli import exit_with
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.models import ModelConfig
from umd_eqx.recipes.pretrain import umd
from umd_eqx.runs.pretrained import Pretrained, export


@pytest.fixture(scope="session")
def exported(random_model, tmp_path_factory) -> Callable[..., str]:
    """`exported(labels=True, denoises=True)`: a file with the weights of a random network for the shipped images."""

    def make(*, labels: bool = True, denoises: bool = True) -> str:
        config = ModelConfig(variant="mu/7", labels=labels, class_tokens=1)
        model = random_model(28, 1, 10, variant="mu/7", labels=labels, class_tokens=1)
        data = umd().data
        facts = (data, data.describe(), "umd-ft" if denoises else "mae", 7, "ema")
        source = Pretrained(model, config, CosineTable(), *facts, denoises=denoises)
        path = tmp_path_factory.mktemp("exported") / "random.safetensors"
        export(source, path)
        return str(path)

    return make


@pytest.fixture
def called(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`called(command, *words)`: runs a command in an empty folder; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for room in ("sample", "evaluate", "probe", "transfer"):
        monkeypatch.setattr(f"umd_eqx.commands.{room}.make_mesh", lambda: make_mesh(jax.devices()[:1]))

    def call(command: Callable[[list[str]], int], *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            exit_with(command, list(words))
        out, error = capsys.readouterr()
        assert "Traceback" not in out + error
        return end.value.code, out, error

    return call


@pytest.fixture
def here() -> Path:
    """The folder that commands run in."""
    return Path()
