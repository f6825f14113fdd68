"""The recipes of networks of latents: the published numbers, and the tokenizers that come with the package."""

import equinox as eqx
import pytest
from faults.tiny import compilation_cache as compilation_cache

from umd_eqx.core.paths import LinearTable
from umd_eqx.eval import Generation
from umd_eqx.models.base import num_parameters
from umd_eqx.objectives import Unified, denoising, unified
from umd_eqx.recipes.build import build
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN, latent_umd
from umd_eqx.runs.resolved import resolve
from umd_eqx.sampling import ReferenceGrid, effective_sampler

PUBLISHED = {"latent-umd-l2-in256": (1024, 80.0), "latent-dit-l2-in256": (256, 95.0)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_of_latents_has_its_numbers(name):
    config = PRETRAIN[name]()
    batch_size, area_min = PUBLISHED[name]
    scratch = name.startswith("latent-dit")
    assert config.objective == (denoising() if scratch else unified())
    assert (config.data.batch_size, config.data.size, config.data.area_min) == (batch_size, 256, area_min)
    assert (config.model.variant, config.model.conditioning, config.model.labels) == ("L/2", "adaln", scratch)
    assert (config.model.class_tokens, config.model.class_token_std, config.model.remat) == (4, 0.0, "full")
    optim = config.optim
    assert (optim.lr, optim.lr_batch_size, optim.warmup, optim.mu_dtype) == (1.5e-4, 256, 0.05, "bfloat16")
    assert (optim.epochs, optim.beta2, optim.weight_decay) == ((400, 0.999, 0) if scratch else (800, 0.95, 0.05))
    assert config.path == LinearTable()
    assert config.image_shape(config.data.expected) == (32, 32, 4)
    assert (config.ema.rate_for(256, labels=config.model.labels) is None) != scratch
    for evaluator in config.eval.values():
        if isinstance(evaluator, Generation):
            sampler = effective_sampler(evaluator.sampler, latents=config.latent is not None)
            assert (sampler.clip, sampler.steps, sampler.eta, sampler.grid) == (False, 125, 1.0, ReferenceGrid())
    built = build(config, config.data.expected)
    # The blocks of a ViT-L and of a third of it, each with an AdaLN of 6 d^2.
    model = built.abstract_state().model
    d, blocks = 1024, 24 + 8
    assert num_parameters(model) == pytest.approx(blocks * 18 * d**2, rel=0.03)
    assert built.step_flops() > 1e14


def test_the_fine_tuned_rows_of_latents_are_not_clipped():
    for name in ("latent-umd-ft", "latent-umd-fsq-ft", "latent-umd-l2-in256-ft"):
        config = FINETUNE[name]()
        assert isinstance(config.objective, Unified)
        assert config.objective.no_noise_prob == 0.05
        assert effective_sampler(config.eval["generation"].sampler, latents=config.latent is not None).clip is False
        assert config.path == LinearTable()
    assert (config.data.batch_size, config.data.size, config.optim.epochs) == (256, 256, 50)


def test_what_comes_with_the_package_is_what_its_presets_expect():
    for name in ("latent-umd", "latent-umd-fsq", "latent-dit"):
        config = PRETRAIN[name]()
        found = resolve(config).config
        assert found.latent._replace(digest=None) == config.latent
        shapes = build(found, found.data.expected).abstract_state()
        assert eqx.filter(shapes, eqx.is_array_like) is not None
    assert latent_umd().image_shape(latent_umd().data.expected) == (7, 7, 4)
