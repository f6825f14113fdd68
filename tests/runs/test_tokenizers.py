"""Tokenizers from wherever they lie, and what a configuration is told of them; what is refused."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.core.cards import sealed
from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.core.types import LatentSpec, same_tokenizer
from umd_eqx.data.source import open_source
from umd_eqx.eval.averages import mean_over_images
from umd_eqx.models.tokenizers.base import with_statistics
from umd_eqx.models.tokenizers.configs import FSQTokenizer, KLTokenizer
from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, WEIGHTS, write_diffusers
from umd_eqx.models.tokenizers.files import latent_moments, mean_and_deviation
from umd_eqx.models.tokenizers.vae import AutoencoderKL, VAEConfig
from umd_eqx.recipes.config import build
from umd_eqx.recipes.pretrain import PUBLISHED_TOKENIZER, latent_umd, latent_umd_l2_in256, umd
from umd_eqx.runs.resolved import resolve
from umd_eqx.runs.tokenizers import SHIPPED, fingerprint, load_tokenizer, save_tokenizer

KL = KLTokenizer(latent_channels=2, widths=(4, 8), groups=2)
FSQ = FSQTokenizer(levels=(3, 4), widths=(4, 4), groups=2)
DIFFUSERS = VAEConfig(channels=1, latent_channels=3, widths=(4, 8), layers=1, groups=2, shift=0.5, scale=2.0)


def made(config):
    return config.build(28, 1, 10, key=jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small KL tokenizer, as a run of train_tokenizer.py leaves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(with_statistics(made(KL), 0.25, 3.0), KL, folder / "tokenizer.safetensors", {"step": 7})
    return folder


@pytest.mark.parametrize("config", [KL, FSQ])
@pytest.mark.parametrize("half", [False, True])
def test_what_was_saved_is_loaded(tmp_path, config, half):
    tokenizer = with_statistics(made(config), -0.5, 1.25)
    save_tokenizer(tokenizer, config, tmp_path / "t.safetensors", {"step": 3}, half=half)
    loaded = load_tokenizer(str(tmp_path / "t.safetensors"))
    assert jax.tree.structure(loaded.tokenizer) == jax.tree.structure(tokenizer)
    for ours, theirs in zip(jax.tree.leaves(loaded.tokenizer), jax.tree.leaves(tokenizer), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)
    assert (loaded.config, loaded.facts) == (config, {"step": 3})
    assert loaded.digest == fingerprint(loaded.tokenizer)
    assert (loaded.digest == fingerprint(tokenizer)) != half
    assert loaded.spec == LatentSpec(2, 2, loaded.digest)


def test_a_run_is_named_by_its_directory_and_diffusers_by_its_folder(saved, tmp_path):
    assert load_tokenizer(str(saved)).digest == load_tokenizer(str(saved / "tokenizer.safetensors")).digest
    write_diffusers(AutoencoderKL.init(DIFFUSERS, key=jax.random.key(0)), DIFFUSERS, tmp_path / "vae")
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.spec == LatentSpec(2, 3, loaded.digest)
    assert (loaded.tokenizer.shift, loaded.tokenizer.scale) == (0.5, 2.0)
    assert loaded.config is None


def test_a_repository_is_found_in_the_hubs_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub/models--somebody--a-vae/snapshots/0a1b"
    write_diffusers(AutoencoderKL.init(DIFFUSERS, key=jax.random.key(0)), DIFFUSERS, snapshot)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    by_home = load_tokenizer("somebody/a-vae").digest
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_tokenizer("somebody/a-vae").digest == by_home
    with pytest.raises(BadInput, match="there is no somebody/another on this machine"):
        load_tokenizer("somebody/another")


def hub_cache(root, monkeypatch, repository, files, revision="0a1b"):
    """Files of a repository as huggingface_hub leaves them: blobs, and a snapshot of links to them."""
    cache = root / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / revision
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs/main").write_text(revision)
    (cache / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = cache / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(root))
    return snapshot


def as_published(folder, seed) -> dict[str, bytes]:
    """The two files of a small VAE, with a configuration as old as that of Stable Diffusion 1.5: no scaling factor."""
    write_diffusers(AutoencoderKL.init(DIFFUSERS, key=jax.random.key(seed)), DIFFUSERS, folder)
    content = json.loads((folder / CONFIG).read_text())
    del content["scaling_factor"], content["shift_factor"]
    return {CONFIG: json.dumps(content).encode(), WEIGHTS: (folder / WEIGHTS).read_bytes()}


def test_the_published_latents_are_those_of_the_vae_of_stable_diffusion_1_5(tmp_path, monkeypatch):
    files = as_published(tmp_path / "made", seed=0)
    rest = {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}', "unet/config.json": b"{}"}
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    in_vae = {f"vae/{name}": content for name, content in files.items()}
    snapshot = hub_cache(tmp_path, monkeypatch, repository, rest | in_vae)
    config = latent_umd_l2_in256()
    assert config.tokenizer == PUBLISHED_TOKENIZER == f"{repository}/vae"
    loaded = load_tokenizer(PUBLISHED_TOKENIZER)
    assert (loaded.tokenizer.scale, loaded.tokenizer.shift) == (0.18215, 0.0)
    # The repository alone says it, too, and so does a folder of this machine.
    for name in (repository, str(snapshot), str(snapshot / "vae")):
        assert load_tokenizer(name).digest == loaded.digest
    # A newer snapshot of other parts of the repository hides nothing.
    newer = hub_cache(tmp_path, monkeypatch, repository, {"tokenizer/merges.txt": b"a b"}, revision="2c3d")
    os.utime(newer, (2**31, 2**31))
    assert load_tokenizer(PUBLISHED_TOKENIZER).digest == loaded.digest
    # The VAE with the same encoder and another decoder is another tokenizer, and can still be named.
    hub_cache(tmp_path, monkeypatch, "stabilityai/sd-vae-ft-mse", as_published(tmp_path / "other", seed=1))
    assert load_tokenizer("stabilityai/sd-vae-ft-mse").digest != loaded.digest


def test_what_is_not_in_the_hubs_cache_is_told_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    hub_cache(tmp_path, monkeypatch, "somebody/else", {"config.json": b"{}"})
    with pytest.raises(BadInput) as refusal:
        load_tokenizer(PUBLISHED_TOKENIZER)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(f"tokenizer: there is no {PUBLISHED_TOKENIZER} on this machine. `pip install")
    command = (
        "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "vae/config.json vae/diffusion_pytorch_model.safetensors`"
    )
    assert command in str(refusal.value)
    with pytest.raises(
        BadInput, match=r"hf download stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.saf"
    ):
        load_tokenizer("stabilityai/sd-vae-ft-mse")
    # The repository is there, but not its weights (of another variant, for example).
    hub_cache(tmp_path, monkeypatch, "stabilityai/sd-vae-ft-mse", {"config.json": b"{}", "x.fp16.safetensors": b""})
    with pytest.raises(BadInput, match="there is no stabilityai/sd-vae-ft-mse on this machine"):
        load_tokenizer("stabilityai/sd-vae-ft-mse")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_with_the_package_is_small_and_gives_images_back(name):
    loaded = load_tokenizer(name)
    assert SHIPPED[name].stat().st_size < 2e6
    assert loaded.spec == LatentSpec(4, 4, loaded.digest)
    source = open_source("fashion_mnist", None, "test[:64]")
    images = np.stack([source[i]["image"] for i in range(64)]).astype(np.float32) / 127.5 - 1
    latents = jax.vmap(lambda x: loaded.tokenizer.encode(x).mode())(images)
    back = jax.vmap(loaded.tokenizer.decode)(latents)
    # By its card: a decibel above what the run itself measured of all test images.
    assert float(np.mean((np.asarray(back) - images) ** 2)) < 0.02
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.1)


def test_the_fingerprint_is_of_weights_shift_and_scale():
    tokenizer = made(KL)
    others = [with_statistics(tokenizer, 0.1, 1.0), with_statistics(tokenizer, 0.0, 1.1)]
    changed = jax.tree.map(lambda leaf: leaf.at[..., 0].add(1e-3), tokenizer)
    assert len({fingerprint(t) for t in [tokenizer, *others, changed]}) == 4
    assert fingerprint(tokenizer) == fingerprint(made(KL))


def test_the_fingerprint_is_of_every_setting_too():
    # The same weights, other codes.
    codes, other = made(FSQ), made(dataclasses.replace(FSQ, levels=(4, 3)))
    assert all(map(jnp.array_equal, jax.tree.leaves(codes), jax.tree.leaves(other)))
    assert fingerprint(codes) != fingerprint(other)
    assert fingerprint(made(KL)) != fingerprint(made(dataclasses.replace(KL, groups=4)))
    norm = dataclasses.replace(codes.decoder.norm, groups=1)
    others = [dataclasses.replace(codes, factor=4), dataclasses.replace(codes, channels=3)]
    others += [dataclasses.replace(codes, decoder=dataclasses.replace(codes.decoder, norm=norm))]
    assert len({fingerprint(t) for t in [codes, *others]}) == 4
    assert fingerprint(made(FSQ)) == fingerprint(made(FSQ))


@pytest.mark.parametrize(("name", "former"), [("fashion-kl", "8ea01e6f13f91b0e"), ("fashion-fsq", "cc6cfb6e0924d965")])
def test_a_fingerprint_without_the_settings_is_still_known(name, former):
    digest = load_tokenizer(name).digest
    assert len(digest) == 32
    assert same_tokenizer(digest, former)
    assert same_tokenizer(former, digest)
    assert same_tokenizer(None, None)
    for other in (None, "", former[:15], "0" * 16, former + "0" * 16, 3):
        assert not same_tokenizer(digest, other)


def test_statistics_are_those_of_latents_as_they_are_drawn():
    # An encoder whose last layer says nothing but its bias: mean 0.7, variance exp(-1) for every number.
    tokenizer = made(KL)
    quiet = jax.tree.map(jnp.zeros_like, tokenizer.encoder.last)
    quiet = dataclasses.replace(quiet, bias=jnp.array([0.5, 0.9, -1.0, -1.0]))
    conv = dataclasses.replace(tokenizer.quant_conv, kernel=jnp.eye(4)[None, None], bias=jnp.zeros(4))
    encoder = dataclasses.replace(tokenizer.encoder, last=quiet)
    tokenizer = dataclasses.replace(tokenizer, encoder=encoder, quant_conv=conv)
    source = open_source("fashion_mnist", None, "test[:20]")
    mean, std = mean_and_deviation(mean_over_images(latent_moments, tokenizer, source, 28, batch_size=8))
    assert mean == pytest.approx(0.7, abs=1e-5)
    assert std == pytest.approx(np.sqrt(0.04 + np.exp(-1)), rel=1e-5)


def test_a_configuration_is_told_what_its_tokenizer_makes(saved):
    config = dataclasses.replace(latent_umd(), tokenizer=str(saved), latent=None)
    found = resolve(config).config
    assert found.latent == LatentSpec(2, 2, load_tokenizer(str(saved)).digest)
    assert found.side == 14
    built = build(found, found.data.describe())
    assert built.abstract_state().model.image_shape == (14, 14, 2)
    assert resolve(umd()).config == umd()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"latents": "somewhere"}, "tokenizer": None},
            "data.latents: a system that is trained on pixels cannot use latents",
        ),
        ({"data": {"size": 30}}, "data.size: 30 is not a multiple of the tokenizer's downsampling factor, 4"),
        ({"latent": None}, "tokenizer: fashion-kl has not been resolved"),
        ({"model": {"variant": "mu/2"}}, "model.variant: a patch size of 2 does not divide an image of 7 x 7"),
    ],
)
def test_configurations_that_cannot_work(change, message):
    config = latent_umd()
    for name, value in change.items():
        inner = dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = dataclasses.replace(config, **{name: inner})
    with pytest.raises(BadInput, match=message):
        build(config, config.data.expected)


def edited(saved, tmp_path, **fields):
    """The saved tokenizer with another card."""
    for suffix in (".safetensors", ".json"):
        shutil.copy((saved / "tokenizer").with_suffix(suffix), tmp_path / f"t{suffix}")
    card = json.loads((tmp_path / "t.json").read_text()) | fields
    (tmp_path / "t.json").write_text(json.dumps(card))
    return str(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 99}, "was written by a newer version"),
        ({"kind": "network"}, "holds no tokenizer"),
        ({"sha256": "0"}, "is not the file that its card describes"),
        ({"model": {"type": "Popen"}}, "'Popen' is not a known type"),
        ({"model": {"type": "LinearTable"}}, "t.json cannot be read"),
        ({"model": {"type": "FashionClassifierConfig"}}, "t.json cannot be read"),
        ({"channels": 10**9}, "t.json cannot be read"),
        ({"scale": 0}, "t.json cannot be read"),
        ({"shift": "nan"}, "t.json cannot be read"),
        ({"model": {"type": "KLTokenizer", "widths": [4, 9]}}, "groups do not divide"),
    ],
)
def test_cards_that_do_not_describe_a_tokenizer(saved, tmp_path, fields, message):
    with pytest.raises(BadInput, match=message) as refusal:
        load_tokenizer(edited(saved, tmp_path, **fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (KL, "shift", 0.35),
        (KL, "scale", 3.0000000000000004),
        (KL, "model", {"type": "KLTokenizer", "latent_channels": 2, "widths": [4, 8], "layers": 1, "groups": 4}),
        (KL, "step", 8),
        (FSQ, "model", {"type": "FSQTokenizer", "levels": [4, 3], "widths": [4, 4], "layers": 1, "groups": 2}),
        (FSQ, "checksum", "0" * 16),
        (FSQ, "checksum", None),
    ],
)
def test_a_card_that_was_changed_is_noticed(tmp_path, config, field, value):
    path = tmp_path / "t.safetensors"
    save_tokenizer(with_statistics(made(config), 0.25, 3.0), config, path, {"step": 7})
    card = json.loads(path.with_suffix(".json").read_text())
    assert card[field] != value
    path.with_suffix(".json").write_text(json.dumps(card | {field: value}))
    with pytest.raises(BadInput, match=r"t.json was changed after it was written") as refusal:
        load_tokenizer(str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"type": "KLTokenizer", "layers": 10**9}},
        {"model": {"type": "KLTokenizer", "groups": 0}},
        {"model": {"type": "KLTokenizer", "widths": "ab"}},
        {"model": {"type": "KLTokenizer", "widths": [4] * 99}},
        {"model": {"type": "KLTokenizer", "latent_channels": True}},
        {"model": {"type": "FSQTokenizer", "levels": [8.5, 5]}},
        {"model": {"type": "FSQTokenizer", "levels": [-3, 4]}},
        {"model": {"type": "ModelConfig"}},
        {"model": [1]},
        {"scale": 10**400},
        {"scale": "2"},
        {"scale": 1e999},
        {"shift": None},
        {"format": "2"},
        {"format": None},
    ],
    ids=json.dumps,
)
def test_a_hostile_card_is_one_line_even_with_a_checksum(saved, tmp_path, fields):
    path = Path(edited(saved, tmp_path, **fields)).with_suffix(".json")
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))
    # Where types are checked, as in tests, some are refused when they are built and not when they are looked at. Which
    # of the two meets a tuple is left to chance: beartype looks at one of its members.
    with pytest.raises(BadInput, match=r"t.json cannot be read|Type-check error|Expected type") as refusal:
        load_tokenizer(str(path.with_suffix(".safetensors")))
    assert "\n" not in str(refusal.value)


def test_a_card_of_the_first_format_is_read_without_a_checksum(saved, tmp_path):
    path = Path(edited(saved, tmp_path, format=1)).with_suffix(".json")
    card = json.loads(path.read_text())
    del card["checksum"]
    path.write_text(json.dumps(card))
    assert load_tokenizer(str(path.with_suffix(".safetensors"))).digest == load_tokenizer(str(saved)).digest
    path.write_text(json.dumps(card | {"sha256": "0"}))
    with pytest.raises(BadInput, match="is not the file that its card describes"):
        load_tokenizer(str(path.with_suffix(".safetensors")))


@pytest.mark.parametrize("what", ["lacks", "has", "shape", "finite"])
def test_files_that_do_not_fit_their_card(saved, tmp_path, what):
    path = edited(saved, tmp_path)
    tensors, _ = read_tensors(path)
    name = min(tensors)
    match what:
        case "lacks":
            del tensors[name]
        case "has":
            tensors["another"] = np.zeros(1, np.float32)
        case "shape":
            tensors[name] = np.zeros((1, 2), np.float32)
        case "finite":
            tensors[name] = np.full_like(tensors[name], np.inf)
    write_tensors(path, tensors)
    card = Path(path).with_suffix(".json")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    with pytest.raises(BadInput, match=what):
        load_tokenizer(path)


def test_what_is_no_tokenizer_at_all(saved, tmp_path):
    with pytest.raises(BadInput, match=r"tokenizer: there is no nowhere on this machine. Pass a run of train_tok"):
        load_tokenizer("nowhere")
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"preset": "kl"}')
    with pytest.raises(BadInput, match="holds a run without a finished tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps([1]))
    with pytest.raises(BadInput, match="is not a readable safetensors file"):
        load_tokenizer(str(tmp_path / "evil.safetensors"))
    shutil.copy(saved / "tokenizer.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(BadInput, match=r"has no card beside it. Put alone.json"):
        load_tokenizer(str(tmp_path / "alone.safetensors"))
