"""Tokenizers in the cache of the Hugging Face hub, and what is said of those that are not there."""

import hashlib
import json
import os

import jax
import pytest
from runs.tiny_tokenizers import DIFFUSERS

from umd_eqx.core.errors import BadInput
from umd_eqx.models.tokenizers.diffusers_vae import CONFIG, WEIGHTS, write_diffusers
from umd_eqx.models.tokenizers.vae import AutoencoderKL
from umd_eqx.recipes.pretrain import PUBLISHED_TOKENIZER, latent_umd_l2_in256
from umd_eqx.runs.tokenizers import load_tokenizer


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
