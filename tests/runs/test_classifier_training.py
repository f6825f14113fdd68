"""The embedded classifier is trained as it always was, by a run like every other."""

import dataclasses
import json
import shlex
from itertools import islice

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from faults.tiny import arrays, assert_equal_bit_for_bit, numbers, on_one_device
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.commands.training import Command
from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import named_leaves
from umd_eqx.data.loader import training_batches
from umd_eqx.data.source import open_source
from umd_eqx.data.transforms import TrainTransform
from umd_eqx.eval import Accuracy
from umd_eqx.models.config import AbstractModelConfig
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.extractors.fashion import (
    CLASSIFIER_FILE,
    command_of,
    is_recognised,
    is_written,
    load_fashion_classifier,
    read_card,
    recipe_facts,
)
from umd_eqx.recipes.build import build
from umd_eqx.recipes.classifier import classifier
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import dump, flags_of
from umd_eqx.runs.dryrun import dry_run
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import run
from umd_eqx.training.optim import EmaConfig
from umd_eqx.training.trainable import AllExcept, Only

STEPS = 12


def small(**fields) -> Config:
    """The recipe for a few steps on a few images."""
    config = classifier()
    data = dataclasses.replace(config.data, train_split="train[:640]", test_split="test[:300]", batch_size=32)
    optim = dataclasses.replace(config.optim, steps=STEPS)
    log, checkpoint = dataclasses.replace(config.log, every=1), dataclasses.replace(config.checkpoint, every=4)
    return dataclasses.replace(
        config, **({"data": data, "optim": optim, "log": log, "checkpoint": checkpoint} | fields)
    )


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of all steps."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        assert run(small(), run_dir=directory, preset="classifier", recipe=classifier()).step == STEPS
    return directory


def plain_loop() -> tuple[dict[str, np.ndarray], list[float]]:
    """The training written out: weights after `STEPS` steps of 32 images, and the losses on the way."""
    model = FashionClassifier.init(10, key=jax.random.key(0))
    decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].name == "kernel", model)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 0, STEPS)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=0.05, mask=decayed)
    )
    state, losses = optimiser.init(model), []
    source = open_source("fashion_mnist", None, "train[:640]")
    batches = training_batches(source, TrainTransform(28, 90.0, True), batch_size=32, seed=0, threads=2)

    @jax.jit
    def step(model, state, image, label):
        def loss(model):
            log_p = jax.nn.log_softmax(jax.vmap(model)((image + 1.0) * 127.5).logits)
            return -jnp.mean(log_p[jnp.arange(len(label)), label])

        value, grads = jax.value_and_grad(loss)(model)
        updates, state = optimiser.update(grads, state, model)
        return optax.apply_updates(model, updates), state, value

    for batch in islice(batches, STEPS):
        model, state, value = step(model, state, batch.image, batch.label)
        losses.append(float(value))
    batches.close()
    return {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}, losses


def test_a_run_trains_the_weights_of_a_plain_loop(whole):
    expected, losses = plain_loop()
    np.testing.assert_allclose([row["train/loss"] for row in numbers(whole)], losses, rtol=1e-4)
    assert losses[-1] < 0.8 * losses[0]  # it learns, so that there is something to compare
    found = named_leaves(load_fashion_classifier(whole / CLASSIFIER_FILE))
    for name, weights in expected.items():
        np.testing.assert_allclose(found[name], weights, atol=2e-5, err_msg=name)


def test_a_run_in_pieces_with_an_average_equals_the_run_in_one(tmp_path):
    config = small(ema=EmaConfig(rate=0.2, batch_size=None))
    run(config, run_dir=tmp_path / "whole")
    for limit in (5, None):
        run(config, run_dir=tmp_path / "pieces", limit_steps=limit)
    assert_equal_bit_for_bit(arrays(tmp_path / "pieces", config), arrays(tmp_path / "whole", config))
    assert read_card(tmp_path / "pieces" / CLASSIFIER_FILE) == (card := read_card(tmp_path / "whole" / CLASSIFIER_FILE))
    assert (card["step"], card["weights"]) == (STEPS, "ema")
    # The average is what is written and measured.
    state = arrays(tmp_path / "whole", config)
    assert np.array_equal(
        state[".ema.head.bias"], load_fashion_classifier(tmp_path / "whole" / CLASSIFIER_FILE).head.bias
    )
    assert not np.array_equal(state[".ema.head.bias"], state[".model.head.bias"])


def test_the_card_says_what_was_trained_and_measured(whole):
    card = read_card(whole / CLASSIFIER_FILE)
    assert (
        card["recipe"]
        == recipe_facts(dump(small()))
        == recipe_facts(dump(classifier())) | {"steps": STEPS, "batch_size": 32}
    )
    assert card["data"] == {"name": "fashion_mnist", "train": "train[:640]", "test": "test[:300]", "test_images": 300}
    assert card["test_accuracy"] == numbers(whole)[-1]["eval/accuracy/recognised"] > 0.3  # chance has 0.1
    assert set(card["versions"]) == {"jax", "equinox", "optax"}
    assert (card["step"], card["weights"], card["parameters"]) == (STEPS, "raw", 421_642)
    assert shlex.split(card["command"])[2:] == [
        *("--data.train-split", "train[:640]", "--data.test-split", "test[:300]", "--data.batch-size", "32"),
        *("--optim.steps", str(STEPS)),
    ]


def test_a_command_names_switches_lists_and_absent_values():
    config = dataclasses.replace(classifier(), seed=3, trainable=AllExcept(("first", "second.bias")))
    ema = EmaConfig(rate=0.1, batch_size=None, only_with_labels=True)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, flip=False), ema=ema)
    words = shlex.split(command_of("classifier", flags_of(classifier(), config)) or "")
    flags = {"--data.no-flip", "--seed 3", "--trainable.frozen first second.bias", "--ema.rate 0.1"}
    assert {f"--{flag}".strip() for flag in " ".join(words[2:]).split("--")[1:]} == flags | {"--ema.only-with-labels"}
    # The flags make that configuration again.
    parsed = tyro.cli(Command, default=Command(classifier()), args=words[2:])
    assert parsed.config == config


def test_a_configuration_of_another_type_has_no_command():
    flags = flags_of(classifier(), dataclasses.replace(classifier(), trainable=Only(("head",))))
    assert flags is None
    assert command_of("classifier", flags) is None
    assert command_of("mine", ("--seed", "3")) is None


def test_a_finished_run_writes_its_classifier_again_where_it_is_missing(whole):
    before = (whole / CLASSIFIER_FILE).read_bytes()
    assert is_written(whole, STEPS)
    assert not is_written(whole, STEPS + 1)
    (whole / CLASSIFIER_FILE).unlink()
    assert not is_written(whole, STEPS)
    run(small(), run_dir=whole)
    assert (whole / CLASSIFIER_FILE).read_bytes() == before
    assert (whole / "report.html").exists()


@dataclasses.dataclass(frozen=True)
class Mine(AbstractModelConfig):
    """A model of a reader's own, whose runs end in a file of what they recognise of each class."""

    title = "mine"
    class_conditional = False

    def build(self, size, channels, num_classes, *, key):
        return FashionClassifier.init(num_classes, key=key)

    def finish(self, run):
        def by_class(model, image, label):
            return jnp.where(jnp.arange(10) == label, is_recognised(model, image, label), 0.0)

        path = run.directory / "classes.json"
        step, model = run.model()
        facts = {"step": step, "flags": run.flags, "steps": run.config["optim"]["steps"], "weights": run.weights}
        path.write_text(json.dumps(facts | {"recognised": run.test_mean(by_class, model).tolist()}))
        return path


def test_a_model_of_a_readers_own_writes_its_own_file_at_the_end(tmp_path, capsys):
    config = small(model=Mine(), eval={"accuracy": Accuracy()})
    run(config, run_dir=tmp_path, preset="mine", recipe=dataclasses.replace(config, seed=1))
    assert f"classes: {tmp_path / 'classes.json'}" in capsys.readouterr().out
    found = json.loads((tmp_path / "classes.json").read_text())
    assert sum(found.pop("recognised")) == pytest.approx(numbers(tmp_path)[-1]["eval/accuracy/recognised"])
    assert found == {"step": STEPS, "flags": ["--seed", "0"], "steps": STEPS, "weights": "raw"}
    assert not (tmp_path / CLASSIFIER_FILE).exists()


def test_the_head_alone_can_be_trained(tmp_path):
    config = small(trainable=Only(("head",)), eval={})
    run(config, run_dir=tmp_path, limit_steps=3)
    first = eqx.filter_jit(FashionClassifier.init)(10, key=jax.random.key(0))
    found = load_fashion_classifier(tmp_path / CLASSIFIER_FILE)
    same = {name: np.array_equal(leaf, named_leaves(first)[name]) for name, leaf in named_leaves(found).items()}
    assert {name for name, kept in same.items() if not kept} == {"head.kernel", "head.bias"}
    cost = json.loads((tmp_path / "environment.json").read_text())["flops_per_step"]
    assert cost < 0.4 * build(small(), config.data.describe()).step_flops()


def test_a_dry_run_compiles_step_and_evaluation():
    text = dry_run(small())
    assert "421,642" in text
    assert "(accuracy)" in text


@pytest.mark.parametrize(("field", "size", "channels"), [("data.size", 32, 1), ("data.source.name", 28, 3)])
def test_images_that_the_classifier_is_not_made_for_are_refused(field, size, channels, tmp_path, monkeypatch):
    config = small()
    spec = config.data.describe()._replace(channels=channels)
    monkeypatch.setattr("umd_eqx.recipes.config.DataConfig.describe", lambda self: spec)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))
    with pytest.raises(BadInput) as error:
        run(config, run_dir=tmp_path / "run")
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_classifier_is_not_a_network_to_sample_from(whole):
    said = (
        r"holds FashionClassifier, which is not a network that predicts images\. Pass a run of pretrain\.py or finetune"
    )
    with pytest.raises(BadInput, match=said):
        from_pretrained(whole)
