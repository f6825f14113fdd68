"""The files of docs/extend.md, run as a reader would run them: trained, resumed, used, exported and loaded."""

import ast
import dataclasses
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extensions import CASES, COMMANDS, FILES, SMALL, USES, Call, after, refused
from extensions import call as call
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import numbers, rows
from oracle import GaussianOracle

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable, RectifiedFlow
from umd_eqx.core.types import Batch
from umd_eqx.eval import Reconstruction
from umd_eqx.recipes.build import build
from umd_eqx.runs.pretrained import from_pretrained


def test_every_extension_is_one_short_file():
    assert FILES.keys() == CASES.keys()
    for text in FILES.values():
        assert len([line for line in text.splitlines() if line.strip()]) <= 40
        assert 'main({**PRETRAIN, "mine": recipe}, types={' in text.splitlines()[-1]


def test_nothing_private_is_needed():
    for text in FILES.values():
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert not [alias.name for node in imports for alias in node.names if alias.name.startswith("_")]
        assert '"--' not in text  # errors name fields; the command line turns them into flags


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_trained_resumed_used_exported_and_loaded(name, call, tmp_path):
    case, (train, use, export) = CASES[name], COMMANDS[name]
    run_dir = after(train, "--run-dir")
    for limit, said in (("1", "report: "), ("2", f"resuming {run_dir} at step 1 of ")):
        code, out, error = call(name, *train, *SMALL, *case.small, "--limit-steps", limit)
        assert (code, error) == (0, "")
        assert said in out
    found = rows(tmp_path / run_dir)
    assert [row["step"] for row in found] == [1, 2]
    assert np.isfinite([row["train/loss"] for row in found]).all()
    assert any(key.startswith(case.measured) for key in found[-1])

    for words in (use, export):
        code, _, error = call(name, *words, *USES.get(words[0], ()))
        assert (code, error) == (0, "")
    assert (tmp_path / "samples.png").exists() == (use[0] == "sample")

    types = [runpy.run_path(name)[cls] for cls in re.findall(r"types=\{\"[\w-]+\": (\w+)\}", FILES[name])]
    run, exported = (from_pretrained(place, types=types) for place in (run_dir, after(export, "--out")))
    assert run.digest == exported.digest
    assert run.config == exported.config
    assert run.step == 2
    assert exported.denoises is True
    if case.types:
        with pytest.raises(BadInput, match=f"'{case.types[0]}' is not a known type"):
            from_pretrained(run_dir)


@pytest.mark.parametrize("name", CASES)
def test_help_shows_the_flags_of_the_class(name, call):
    code, out, _ = call(name, "mine", "--help")
    assert code == 0
    assert CASES[name].flag in out


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("my_objective.py", "mine --objective min-sn", "--objective: there is no 'min-sn'. Did you mean min-snr?"),
        ("my_objective.py", "mine --objective.gamma 0", "--objective.gamma: 0.0 is not positive"),
        ("my_network.py", "dit --model unett", "--model: there is no 'unett'. Did you mean unet?"),
        ("my_network.py", "patch-noise --model unet", "--model: UNet has no patches to draw a time for. Use a network"),
        ("my_network.py", "sampel --run runs/unet", "preset: there is no 'sampel'"),
        ("my_sampler.py", "sample --sampler ancestor", "--sampler: there is no 'ancestor'. Did you mean ancestral?"),
        ("my_data.py", "mine --data.source nzp", "--data.source: there is no 'nzp'. Did you mean npz?"),
        ("my_data.py", "mine", "--data.dir: None is not an .npz file with a split 'train'"),
        ("my_data.py", "mine --data.dir bloodmnist.npz --data.test-split val", "--data.dir: bloodmnist.npz is not an"),
        (
            "my_evaluator.py",
            "mine --eval.rank effective-rnk",
            "--eval.rank: there is no 'effective-rnk'. Did you mean effective-rank?",
        ),
        ("my_optimiser.py", "mine --optim lino", "--optim: there is no 'lino'. Did you mean lion?"),
    ],
)
def test_a_mistake_is_one_line(name, words, said, call):
    assert refused(call(name, *words.split())).startswith(said)


def defined(name: str, cls: str, folder: Path) -> Callable:
    (folder / name).write_text(FILES[name])
    return runpy.run_path(str(folder / name))[cls]


def test_the_loss_of_the_objective_is_the_weighted_error(tmp_path):
    objective = defined("my_objective.py", "MinSNR", tmp_path)(gamma=2.0)
    oracle = GaussianOracle.random(CosineTable(), (4, 4, 1))
    images = oracle.sample(jax.random.key(0), 2000)
    batch = Batch(images, jnp.zeros(len(images), jnp.int32), jnp.ones(len(images), bool))
    draw = objective.draw(jax.random.key(1), oracle, oracle.path, images.shape)
    draw = dataclasses.replace(draw, t=jnp.where(jnp.arange(len(images)) % 2 == 0, 0.3, 0.8))
    loss, metrics = objective.loss(oracle, oracle.path, batch, draw)
    early, late = (float(jnp.mean(oracle.errors(jnp.asarray(t)).x0)) for t in (0.3, 0.8))
    ratio = float((oracle.path.alpha(jnp.asarray(0.8)) / oracle.path.sigma(jnp.asarray(0.8))) ** 2)
    assert ratio < 2.0  # the other one is above the bound
    assert float(metrics["x0"]) == pytest.approx((early + late) / 2, rel=0.05)
    assert float(loss) == pytest.approx((2.0 * early + ratio * late) / 2, rel=0.05)


@pytest.mark.parametrize("path", [CosineTable(), RectifiedFlow()], ids=lambda path: type(path).__name__)
def test_the_sampler_draws_from_the_distribution_of_the_data(path, tmp_path):
    sampler = defined("my_sampler.py", "Ancestral", tmp_path)(steps=200, clip=False)
    oracle = GaussianOracle.random(path, (2, 2, 1))
    denoiser = sampler.denoiser(oracle, path)

    def draw(key):
        noise_key, key = jax.random.split(key)
        return sampler(denoiser, jax.random.normal(noise_key, (2, 2, 1)), key).reshape(-1)

    found = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)))
    covariance = np.asarray(oracle.covariance)
    np.testing.assert_allclose(found.mean(axis=0), np.asarray(oracle.mean).reshape(-1), atol=0.06)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.08 * covariance.max())


def trained_unet(call: Call, run_dir: str = "run", *words: str) -> None:
    small = (*SMALL, *CASES["my_network.py"].small, *words)
    assert call("my_network.py", "mine", *small, "--run-dir", run_dir)[::2] == (0, "")


def test_a_resumed_network_has_the_numbers_of_one_that_was_not_stopped(call, tmp_path):
    for limit in ("1", "3"):
        trained_unet(call, "resumed", "--limit-steps", limit)
    trained_unet(call, "whole", "--limit-steps", "3")
    evaluated = "eval/denoising/x0/t0.50"  # also where the first one ended
    first, second = (
        [{k: v for k, v in row.items() if k != evaluated} for row in numbers(tmp_path / name)]
        for name in ("resumed", "whole")
    )
    assert second[1:] == first[1:]
    assert second[0]["train/loss"] == first[0]["train/loss"]


def test_what_a_network_without_patches_cannot_do_is_refused_by_name(call, tmp_path):
    unet = ("--model", "unet")
    assert refused(call("my_network.py", "dit", *unet)).startswith("--eval.fewshot: UNet does not represent images")
    assert refused(call("my_network.py", "dit", *unet, "--dry-run")).startswith("--eval.fewshot: ")
    assert refused(call("my_network.py", "mae", *unet)).startswith("--objective.mask-ratio: ")
    assert not (tmp_path / "runs").exists()
    recipe = runpy.run_path("my_network.py")["recipe"]
    config = recipe()
    config.eval["hidden"] = Reconstruction()
    with pytest.raises(BadInput, match=r"eval\.hidden: an image is a single patch"):
        build(config, config.data.describe())

    trained_unet(call, "run", "--limit-steps", "1")
    probed = ("evaluate", "--benchmark", "probe", "--run", "run")
    assert refused(call("my_network.py", *probed)).startswith("--run: UNet does not represent images")
    for preset in ((), ("umd-ft",)):
        error = refused(call("my_network.py", "finetune", *preset, "--from", "run"))
        assert error.startswith("--from: there is no fine-tuning recipe for UNetConfig")


def test_the_cost_of_a_network_is_counted(call):
    config = runpy.run_path("my_network.py")["recipe"]()
    w = config.model.width
    convolutions = [(1, w, 28), (w, w, 14), (w, w, 7), (2 * w, w, 7), (2 * w, w, 14), (2 * w, 1, 28)]
    image = sum(2 * 9 * inputs * outputs * side**2 for inputs, outputs, side in convolutions)
    image += 2 * 2 * (2 * w * 2 * w)  # two products for the time, and two for the label
    step = 3 * (32 * image + 2 * 2)  # with the weighted sum of two terms
    assert build(config, config.data.describe()).step_flops() == step
    code, out, error = call("my_network.py", "mine", "--dry-run")
    assert (code, error) == (0, "")
    assert f"{step / 1e9:,.1f} G" in out


@pytest.mark.parametrize("change", [{"width": "8"}, {"width": -8}, {"width": 9}, {"depth": 3}, {"type": "KLTokenizer"}])
def test_a_changed_card_of_an_own_network_is_refused_in_one_line(change, call, tmp_path):
    trained_unet(call, "run", "--limit-steps", "1")
    assert call("my_network.py", "export", "--run", "run", "--out", "unet.safetensors")[::2] == (0, "")
    card = tmp_path / "unet.json"
    content = json.loads(card.read_text())
    content["model"] |= change
    card.write_text(json.dumps(content))
    error = refused(call("my_network.py", "sample", "--run", "unet.safetensors"))
    assert error.startswith(("--run: ", "config.json: "))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_resumes_with_the_same_numbers(name, call, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "UMD_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent.parent)}
    train = COMMANDS[name][0]
    words = [*train[: train.index("--run-dir")], *SMALL, *CASES[name].small, "--limit-steps", "40"]

    def start(run_dir: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, name, *words, "--run-dir", run_dir]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    killed, end = start("killed"), time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoints" / "3").exists():
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert len(rows(tmp_path / "killed")) < 40
    assert start("killed").wait(300) == 0
    assert start("whole").wait(300) == 0
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
