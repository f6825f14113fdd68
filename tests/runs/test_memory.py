"""What a run takes of a device, read off its compiled programs: nothing is allocated."""

import dataclasses

import jax
import pytest
from eval.fakes import context, noise

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import abstract, is_shape
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import LatentSpec
from umd_eqx.eval import TokenizerQuality
from umd_eqx.eval.averages import mean_program
from umd_eqx.models.tokenizers.files import latent_moments
from umd_eqx.models.tokenizers.vae import SD_V1, AutoencoderKL
from umd_eqx.recipes.build import Built, build
from umd_eqx.recipes.classifier import CLASSIFIERS
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN, latent_umd_l2_in256, mae, umd
from umd_eqx.recipes.tokenizers import TOKENIZERS
from umd_eqx.runs.memory import programs, step_program
from umd_eqx.runs.tokenizers import tokenizer_shapes
from umd_eqx.training.step import train_step

MOST = 80e9
"""Bytes of a large accelerator."""


def built(config, devices: int = 1) -> Built:
    return build(config, config.data.expected, make_mesh(jax.devices()[:devices]))


def test_a_published_run_of_latents_evaluates_in_what_a_device_has():
    # 1,024 images of 256 px through the Stable Diffusion VAE: with all of them at once 996 GB of temporaries.
    parts = programs(built(latent_umd_l2_in256()))
    assert set(parts) == {"step", "encoding", "fewshot", "reconstruction", "denoising"}
    (denoise,) = parts["denoising"].values()
    assert denoise.memory().total < MOST


def test_a_tokenizer_of_large_images_is_measured_in_what_a_device_has():
    # 256 images of 256 px: 61 GB there and back, and 42 GB for the encoding alone, where all of them go at once.
    size = dataclasses.replace(SD_V1, channels=1)
    tokenizer = jax.eval_shape(lambda key: AutoencoderKL.init(size, key=key), jax.random.key(0))
    source = noise(1, size=256)
    given = context(source, source, batch_size=256, devices=1)
    (there_and_back,) = TokenizerQuality().programs(tokenizer, given).values()
    for program in (there_and_back, mean_program(latent_moments, tokenizer, given.image_shapes, given.mesh)):
        assert program.memory().total < MOST / 8


RECIPES = {**PRETRAIN, **FINETUNE, **TOKENIZERS, **CLASSIFIERS}
SMALL = {name: recipe for name, recipe in RECIPES.items() if "-in" not in name}


OFTEN = ("umd", "mae", "latent-dit", "kl", "classifier")
"""One for each kind of network. Compiling the others as well takes minutes."""


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_every_part_of_a_small_preset_takes_little(name):
    config = SMALL[name]()
    parts = programs(built(config))
    encoding = {"encoding"} if config.tokenizer is not None else set()
    assert set(parts) == {"step"} | encoding | set(config.eval)
    del parts["step"]  # which the next test compiles
    for part, some in parts.items():
        taken = {program: one.memory().total for program, one in some.items()}
        assert taken, part
        assert all(0 < total < 0.5e9 for total in taken.values()), (part, taken)


def test_a_step_is_measured_as_it_trains():
    config = mae()
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, variant="mu/7"))
    program = step_program(built(small, devices=8))
    assert program.function is train_step
    memory = program.memory()
    leaves = jax.tree.leaves(built(small).abstract_state())
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if is_shape(leaf))
    # The devices share the batch and not the state, which takes the place of the old one.
    batch = small.data.batch_size / 8 * (28 * 28 * 4 + 4 + 1)
    assert memory.arguments == pytest.approx(state + batch, rel=1e-3)
    assert memory.outputs < 1e4


def test_shapes_of_a_tokenizer_need_not_its_weights():
    published = latent_umd_l2_in256()
    assert tokenizer_shapes(umd()) is None
    shapes = tokenizer_shapes(published)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(shapes))) == 83_653_863
    assert (shapes.factor, shapes.latent_channels) == (8, 4)
    with pytest.raises(BadInput, match="tokenizer"):
        tokenizer_shapes(dataclasses.replace(published, latent=LatentSpec(4, 4)))
