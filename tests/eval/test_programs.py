"""What evaluators state of their computations is what they compile, and large images go through in pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eval.fakes import Fake, blobs, context, noise
from known_tokenizers import Rearranged

from umd_eqx.core.programs import Program, abstract, is_shape
from umd_eqx.eval import Denoising, FewShot, Generation, Reconstruction, TokenizerQuality
from umd_eqx.sampling import DDIM

KEY = jax.random.key(0)
SAMPLER = DDIM(steps=2, clip=False)
EVALUATORS = {
    "denoising": Denoising(images=8, pictures=2, levels=(0.3,), shown_levels=(0.3,)),
    "reconstruction": Reconstruction(images=8, pictures=2),
    "fewshot": FewShot(shots=2, seeds=1, features=("patches",), raw_pixels=False),
    "generation": Generation(samples=10, sampler=SAMPLER, columns=2, frames=2, extractor="fashion", batch_size=8),
}
COMPILED = {
    "denoise": ("eval.denoising._denoise",),
    "reconstruct": ("eval.reconstruction._reconstruct",),
    "represent": ("eval.features.represent_batch",),
    "encode": ("eval.base.posterior_mode", "eval.features.posterior_mode"),
    "sample": ("sampling.batch.sample_batch", "eval.generation.sample_batch"),
    "decode": ("eval.base.decode_batch", "eval.generation.decode_batch"),
    "trajectories": ("eval.generation._trajectories",),
    "features": ("eval.activations.activate_batch", "eval.generation.activate_batch"),
}
"""Where the functions lie that the programs of these names call."""

PIXELS = Fake(0.5)
LATENTS = Fake(0.5, image_shape=(4, 4, 4), num_patches=16, patch=1)


def shapes(arguments) -> list:
    """Shapes and types of all arrays, in order."""
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract(arguments)) if is_shape(leaf)]


class Recorder:
    """Calls a function, and remembers the shapes of what it was called with."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *arguments):
        self.calls.append(shapes(arguments))
        return self.function(*arguments)


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("tokenizer", [None, Rearranged.init()], ids=["pixels", "latents"])
def test_an_evaluator_compiles_the_programs_that_it_states(name, tokenizer, monkeypatch):
    recorders = {}
    for program, places in COMPILED.items():
        for place in places:
            module = f"umd_eqx.{place}".rpartition(".")[0]
            function = getattr(__import__(module, fromlist=["_"]), place.rpartition(".")[2])
            recorder = recorders.setdefault(program, Recorder(function))
            monkeypatch.setattr(f"umd_eqx.{place}", recorder)
    train, test = blobs(40, 0), blobs(24, 1)
    given = dataclasses.replace(context(train, test, batch_size=8), tokenizer=tokenizer)
    model, evaluator = (PIXELS if tokenizer is None else LATENTS), EVALUATORS[name]
    stated = evaluator.programs(model, dataclasses.replace(given, tokenizer=abstract(tokenizer)))
    assert stated
    evaluator.build(given)(model, KEY)
    called = {program: recorder.calls for program, recorder in recorders.items() if recorder.calls}
    if tokenizer is None and name == "fewshot":
        assert "encode" not in stated
    for program, one in stated.items():
        assert one.function is recorders[program]
        assert shapes(one.arguments) in called.pop(program), program
    assert not called  # nothing was compiled that is not stated


@pytest.mark.parametrize(
    ("evaluator", "tokenizer"),
    [
        (Denoising(images=16, pictures=2, levels=(0.3,), shown_levels=(0.3,)), Rearranged.init(factor=64)),
        (Reconstruction(images=16, pictures=2), None),
        (FewShot(shots=1, seeds=1, features=("patches",), raw_pixels=False), Rearranged.init(factor=64)),
        (TokenizerQuality(images=16, pictures=2), None),
    ],
)
def test_images_in_pieces_have_the_numbers_of_all_at_once(evaluator, tokenizer):
    # 16 images of 256 px are a device's share at once, hence 4 of 512: 8 on each device go in two pieces.
    source, devices = noise(16, size=512), 2
    model = Fake(0.5, image_shape=(512, 512, 1), num_patches=64, patch=64)
    if tokenizer is not None:
        model = Fake(0.5, image_shape=(8, 8, 64 * 64), num_patches=64, patch=1)
    if isinstance(evaluator, TokenizerQuality):
        model = Rearranged.init(factor=64)
    reports, loops = [], []
    for batch_size in (8 * devices, 4 * devices):
        given = context(source, source, batch_size=batch_size, devices=devices)
        given = dataclasses.replace(given, tokenizer=tokenizer)
        reports.append(evaluator.build(given)(model, KEY))
        programs = evaluator.programs(model, given).values()
        loops.append([program.lower().as_text().count("stablehlo.while") for program in programs])
    assert loops[0] == [1 + count for count in loops[1]]  # drawing noise has loops, too
    assert dict(reports[0].scalars) == pytest.approx(dict(reports[1].scalars), rel=1e-6)
    for name, image in reports[0].images.items():
        np.testing.assert_allclose(image.astype(int), reports[1].images[name].astype(int), atol=1)  # of a grey level


def test_trajectories_decode_the_steps_that_are_shown_and_no_others():
    evaluator = dataclasses.replace(EVALUATORS["generation"], sampler=DDIM(steps=9), frames=3)
    given = dataclasses.replace(context(noise(8), noise(8)), tokenizer=abstract(Rearranged.init()))
    (trajectories,) = jax.tree.leaves(evaluator.programs(LATENTS, given)["trajectories"].lower().out_info)
    assert trajectories.shape == (4, 3, 8, 8, 1)


def test_a_program_is_measured_without_arrays():
    def product(x, y, scale: float):
        return scale * (x @ y), x + 1.0

    big = jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)  # 4 GB each
    memory = Program(product, (big, big, 2.0)).memory()
    assert memory.arguments == 2 * 2**32
    assert memory.outputs == pytest.approx(2 * 2**32, rel=1e-6)
    assert memory.total == memory.arguments + memory.temporaries + memory.outputs
    # What takes the place of a donated argument is counted once.
    assert Program(product, (big, big, 2.0), donated=(0,)).memory().outputs == pytest.approx(2**32, rel=1e-6)
