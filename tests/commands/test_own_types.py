"""A file of a reader's own, with an optimiser, a sampler and an objective: every command knows them."""

import json
import runpy
import sys

import jax
import numpy as np
import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import one_device as one_device
from faults.tiny import rows

from umd_eqx.commands.cli import exit_with
from umd_eqx.commands.sample import sample
from umd_eqx.core.errors import BadInput
from umd_eqx.core.sharding import make_mesh
from umd_eqx.recipes.dump import load
from umd_eqx.runs.pretrained import from_pretrained

FILE = '''
import dataclasses

import equinox as eqx
import optax

from umd_eqx.commands.cli import main
from umd_eqx.objectives import AbstractObjective, MaskedDenoising, denoising
from umd_eqx.training.optim import AbstractOptimiser
from umd_eqx.recipes.pretrain import umd
from umd_eqx.sampling import DDIM, AbstractGrid, AbstractSampler, UniformGrid


@dataclasses.dataclass(frozen=True)
class Lion(AbstractOptimiser):
    """Lion."""

    decay: float = 0.99
    """Decay of the momentum."""

    def transformation(self, lr):
        clip = optax.clip_by_global_norm(self.clip)
        return optax.chain(clip, optax.lion(lr, b2=self.decay, weight_decay=self.weight_decay))


class Calm(AbstractSampler):
    """DDIM with half of its noise."""

    steps: int = eqx.field(static=True, default=9)
    noise: float = eqx.field(static=True, default=0.5)
    """Share of the noise."""
    grid: AbstractGrid = eqx.field(default_factory=UniformGrid)
    head: str = eqx.field(static=True, default="eps")
    clip: bool = eqx.field(static=True, default=True)

    def __call__(self, *args, **kwargs):
        return DDIM(self.steps, self.noise, self.grid, self.head, self.clip)(*args, **kwargs)

    def states(self, *args, **kwargs):
        return DDIM(self.steps, self.noise, self.grid, self.head, self.clip).states(*args, **kwargs)

    def evaluations(self, denoiser):
        return DDIM(self.steps, self.noise, self.grid, self.head, self.clip).evaluations(denoiser)


class Heavier(AbstractObjective):
    """A loss times a number."""

    weight: float = eqx.field(static=True, default=2.0)
    inner: MaskedDenoising = eqx.field(default_factory=denoising)

    def draw(self, *args):
        return self.inner.draw(*args)

    def loss(self, *args):
        loss, metrics = self.inner.loss(*args)
        return self.weight * loss, metrics

    def period(self, batch_size):
        return self.inner.period(batch_size)

    def validate(self, num_patches, batch_size):
        self.inner.validate(num_patches, batch_size)


def tiny():
    """Two steps a minute."""
    config = umd()
    changes = {
        "model": dataclasses.replace(config.model, variant="mu/7", labels=True),
        "data": dataclasses.replace(config.data, batch_size=8, eval_batch_size=8),
        "optim": dataclasses.replace(config.optim, steps=6),
        "log": dataclasses.replace(config.log, every=1),
    }
    return dataclasses.replace(config, eval={}, **changes)


if __name__ == "__main__":
    main({"tiny": tiny}, types={"lion": Lion, "calm": Calm, "heavier": Heavier})
'''


@pytest.fixture
def mine(tmp_path, monkeypatch, capsys):
    """`mine(*words)`: runs the file as a reader would, in its folder; exit code, stdout and stderr."""
    (tmp_path / "my_file.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    for room in ("sample", "evaluate"):
        monkeypatch.setattr(f"umd_eqx.commands.{room}.make_mesh", lambda: make_mesh(jax.devices()[:1]))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["my_file.py", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("my_file.py", run_name="__main__")
        out, error = capsys.readouterr()
        return end.value.code or 0, out, error

    return call


@pytest.mark.usefixtures("one_device")
def test_own_types_are_trained_resumed_sampled_fine_tuned_exported_and_loaded(mine, tmp_path, capsys):
    words = ("--optim", "lion", "--optim.decay", "0.9", "--objective", "heavier", "--run-dir", "run")
    for limit in ("2", "4"):
        code, _, error = mine("tiny", *words, "--limit-steps", limit)
        assert (code, error) == (0, "")
    losses = [row["train/loss"] for row in rows(tmp_path / "run")]
    assert len(losses) == 4
    assert np.all(np.isfinite(losses))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (kept["optim"]["type"], kept["optim"]["decay"], kept["objective"]["type"]) == ("Lion", 0.9, "Heavier")

    drawn = ("--sampler", "calm", "--noise", "0.25", "--steps", "2", "--num", "2", "--batch-size", "2")
    code, out, error = mine("sample", "--run", "run", *drawn, "--grid", "edm")
    assert (code, error) == (0, "")
    assert "calm, 2 steps, guidance 2" in out
    assert (tmp_path / "samples.png").exists()

    code, out, error = mine("finetune", "--from", "run", "--print-config")
    assert (code, error) == (0, "")
    derived = json.loads(out)
    assert (derived["optim"]["type"], derived["optim"]["decay"]) == ("Lion", 0.9)

    code, _, error = mine("export", "--run", "run", "--out", "mine.safetensors")
    assert (code, error) == (0, "")
    assert from_pretrained("mine.safetensors").model.num_classes == 10

    types = runpy.run_path("my_file.py")
    source = from_pretrained("run", types=[types["Lion"], types["Heavier"]])
    assert (source.step, source.denoises) == (4, True)
    assert load(kept, [types["Lion"], types["Heavier"]]).objective.weight == 2.0
    # Nothing that a file names is imported: without them, the run is refused in one line.
    with pytest.raises(BadInput, match="'Lion' is not a known type"):
        from_pretrained("run")
    with pytest.raises(SystemExit) as end:
        exit_with(sample, ["--run", "run"])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert "python my_file.py sample" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_samples_of_an_own_sampler_are_measured(mine, tmp_path):
    assert mine("tiny", "--optim", "lion", "--run-dir", "run", "--limit-steps", "1")[0] == 0
    words = ("--samples", "16", "--steps", "2", "--no-baseline", "--json", "e.json")
    code, _, error = mine("evaluate", "--run", "run", "--sampler", "calm", *words)
    assert (code, error) == (0, "")
    (result,) = json.loads((tmp_path / "e.json").read_text())
    sampler = {name: result["sampler"][name] for name in ("name", "type", "steps", "noise", "seed")}
    assert sampler == {"name": "calm", "type": "Calm", "steps": 2, "noise": 0.5, "seed": 0}


@pytest.mark.parametrize("command", [(), ("sample",), ("evaluate",), ("finetune",), ("export",)], ids=str)
def test_every_command_has_its_help(mine, command):
    code, out, _ = mine(*command, "--help")
    assert code == 0
    assert ("calm" in out) == (command in (("sample",), ("evaluate",), ("finetune",)))
    assert ("lion" in out) == (command in ((), ("finetune",)))
    assert ("--noise" in out) is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--optim", "loin"),
            "error: --optim: there is no 'loin'. Did you mean lion? Choose one of: adamw, muon, lars, l",
        ),
        (("--objective", "x"), "error: --objective: there is no 'x'. Choose one of: heavier"),
        (("sample", "--sampler", "clam"), "error: --sampler: there is no 'clam'. Did you mean calm?"),
        (("sampel",), "error: preset: there is no 'sampel'"),
    ],
)
def test_a_typo_is_one_line(mine, words, said):
    code, _, error = mine(*words)
    assert code == 2
    assert error.startswith(said)
    assert len(error.splitlines()) == 1
