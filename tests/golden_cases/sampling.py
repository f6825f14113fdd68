"""The reference's DDIM, on recorded noise."""

import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from golden_cases.base import Comparison, Folder, Group, close, exact
from umd_eqx.core.paths import NETWORK_STEPS, AbstractDiscretePath, CosineTable, LinearTable
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.types import NO_CLASS, Cond
from umd_eqx.models import AbstractModel
from umd_eqx.sampling import DDIM, ReferenceGrid
from umd_eqx.sampling.denoisers import end_times

_CASE = re.compile(r"((cosine|linear)_s(\d+)_clip([01])_eta([\d.]+)_([AB]))/(sample|x_before_each_eval)")
_PATHS: dict[str, AbstractDiscretePath] = {"cosine": CosineTable(), "linear": LinearTable()}


class Formula(AbstractModel):
    """The two noise predictions that the samples were recorded with: formulas of x and the diffusion index t."""

    kind: str = eqx.field(static=True)
    path: AbstractDiscretePath
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True, default=None)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    def cond(self, y: Any = NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x: Any, cond: Any, view: Any = None, *, key: Any = None) -> X0EpsPrediction:
        index = cond.t - 1.0  # what the network is fed is one more
        wave = jnp.sin(index / 100.0)
        if self.kind == "A":
            return X0EpsPrediction(x, 0.3 * x + 0.1 * wave)
        a = self.path.alpha(cond.t / NETWORK_STEPS) ** 2
        return X0EpsPrediction(x, jnp.sqrt(1.0 - a) * x / (0.25 * a + 1.0 - a) + 0.02 * wave)


def _asked(steps: int, path: AbstractDiscretePath) -> np.ndarray:
    """The diffusion indices at which the network is asked."""
    times = ReferenceGrid().times(path, steps, 64, end_times(path, "eps"))
    return np.rint(times * path.steps).astype(int) - 1


def _without_repeats(indices: np.ndarray) -> np.ndarray:
    return indices[np.append(True, np.diff(indices) != 0)]


def _cases(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["ddim"]
    for name, value in recorded.items():
        if match := re.fullmatch(r"(?:t_seq|evaluated_t|ref_timesteps)_s(\d+)", name):
            asked = _without_repeats(np.asarray(value).reshape(-1))
            ours = _asked(int(match[1]), _PATHS["cosine"])
            yield Comparison(name, exact(name, ours, asked).error if ours.shape == asked.shape else float("inf"))
        elif name != "normals" and not _CASE.fullmatch(name):
            folder.skip(f"{recorded.name}: {name} is no case of a kind that is known")
    for name, value in recorded.items():
        if match := _CASE.fullmatch(name):
            case, kind, steps, clip, eta, model, what = match.groups()
            path = _PATHS[kind]
            sampler = DDIM(steps=int(steps), eta=float(eta), clip=clip == "1")
            normals = jnp.asarray(recorded["normals"])
            formula = Formula(model, path, normals.shape[2:])
            calls = sampler.evaluations(sampler.denoiser(formula, path))

            def sample(x: Any, step_noise: Any, every: bool, sampler=sampler, formula=formula, path=path) -> Any:
                run = sampler.states if every else sampler
                return run(sampler.denoiser(formula, path), x, jax.random.key(0), step_noise=step_noise)

            every = what == "x_before_each_eval"
            ours = jax.vmap(lambda x, z, run=sample, every=every: run(x, z, every), in_axes=(0, 1))(
                normals[0], normals[1 : 1 + calls]
            )
            ours = np.asarray(ours[1]).swapaxes(0, 1) if every else np.asarray(ours)
            # What is recorded of the repeats at index 0 is left out.
            yield close(f"{case}/{what}", ours, value[:calls] if every else value)


GROUP = Group("DDIM", ("ddim",), 2e-4, _cases)
