"""The compiled programs of a run, for measuring memory from shapes: its training step and its evaluators."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from umd_eqx.core.programs import Program, abstract
from umd_eqx.core.sharding import batch_sharding, replicated
from umd_eqx.core.types import Batch, DataSpec
from umd_eqx.data.source import Example
from umd_eqx.eval import EvalContext
from umd_eqx.latents.stream import encode_batch
from umd_eqx.models.tokenizers.base import AbstractTokenizer
from umd_eqx.recipes.build import Built
from umd_eqx.runs.tokenizers import tokenizer_shapes
from umd_eqx.training.step import train_step

STEP, ENCODING = "step", "encoding"
"""The parts of a run other than its evaluators."""


def programs(built: Built, tokenizer: AbstractTokenizer | None = None) -> dict[str, dict[str, Program]]:
    """The programs of each part of a run, by name, at full size and on the devices of its mesh.

    The first part is `step`, followed by `encoding` if the run encodes images on the fly; the others are the evaluators
    by name. Nothing is allocated, and neither the data nor the tokenizer's weights need to be on this machine. Pass the
    configuration's `tokenizer` if it is loaded already. Raises `BadInput` naming `tokenizer` if its shapes are
    unknown.
    """
    tokenizer = tokenizer_shapes(built.config) if tokenizer is None else tokenizer
    tokenizer = abstract(tokenizer, replicated(built.parts.mesh))
    parts = {STEP: {"update": step_program(built)}}
    if tokenizer is not None and built.config.data.latents is None:
        parts[ENCODING] = {"encode": encoding_program(built, tokenizer)}
    model, context = built.parts.layout.abstract(built.abstract_state()).model, _context(built, tokenizer)
    return parts | {name: evaluator.programs(model, context) for name, evaluator in built.config.eval.items()}


def step_program(built: Built) -> Program:
    """The training step, with the state donated."""
    batch = _batch(built, built.config.image_shape(built.spec))
    return Program(train_step, (built.parts, built.parts.layout.abstract(built.abstract_state()), batch), donated=(1,))


def encoding_program(built: Built, tokenizer: AbstractTokenizer) -> Program:
    """The encoding of one batch of images into latents."""
    size = built.config.data.size
    key, step = abstract(jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    images = _batch(built, (size, size, built.spec.channels))
    return Program(encode_batch, (tokenizer, images, key, step, built.parts.mesh))


def _batch(built: Built, image: tuple[int, int, int]) -> Batch:
    def batch(count: int) -> Batch:
        return Batch(jnp.zeros((count, *image)), jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))

    return abstract(eqx.filter_eval_shape(batch, built.config.data.batch_size), batch_sharding(built.parts.mesh))


def _context(built: Built, tokenizer: AbstractTokenizer | None) -> EvalContext:
    data, spec = built.config.data, built.spec
    train, test = _Described(spec, spec.num_train), _Described(spec, spec.num_test)
    mesh, path = built.parts.mesh, built.parts.path
    return EvalContext(train, test, path, data.size, data.eval_batch_size, mesh, tokenizer=tokenizer)


class _Described:
    """A data set that has a description but no images."""

    def __init__(self, spec: DataSpec, count: int):
        self.spec, self._count = spec, count

    def __len__(self) -> int:
        return self._count

    def labels(self, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        raise NotImplementedError("this data set has a description but no images")

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError("this data set has a description but no images")
