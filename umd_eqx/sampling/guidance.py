"""Guidance: denoisers that combine other denoisers, and can be used in their place."""

import jax
import jax.numpy as jnp

from umd_eqx.core.errors import BadInput
from umd_eqx.core.predictions import Denoised
from umd_eqx.core.types import AbstractCond, Image, Scalar, Time
from umd_eqx.sampling.denoisers import AbstractDenoiser, AbstractDerivedDenoiser, Ends


class ClassifierFree(AbstractDerivedDenoiser):
    """Classifier-free guidance: uncond + cfg_scale (cond - uncond), of the clean image and of the noise.

    This is Ho and Salimans 2022, eq. 6, in the notation of the reference: 1 is no guidance, 0 is no label. Both
    predictions are computed in one batch. Raises `BadInput` naming `cfg_scale` for a network without labels.
    """

    denoiser: AbstractDenoiser
    cfg_scale: Scalar

    def __init__(self, denoiser: AbstractDenoiser, cfg_scale: float | Scalar):
        self.denoiser, self.cfg_scale = denoiser, _scale(cfg_scale)
        if denoiser.model.num_classes is None:
            raise BadInput("cfg_scale", "the network has no labels for guidance", "Fine-tune it, or use 1")

    @property
    def ends(self) -> Ends:
        """The end times of `denoiser`."""
        return self.denoiser.ends

    def with_cond(self, cond: AbstractCond) -> "ClassifierFree":
        """Returns the same denoiser with other conditioning."""
        return ClassifierFree(self.denoiser.with_cond(cond), self.cfg_scale)

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the guided clean image and noise. With `NO_CLASS`, guidance has no effect."""
        conds = jax.tree.map(lambda *leaves: jnp.stack(leaves), self.cond, self.cond.unlabelled())
        both = jax.vmap(lambda cond: self.denoiser.with_cond(cond)(x_t, t))(conds)
        cond, uncond = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
        return _extrapolate(uncond, cond, self.cfg_scale)


class Autoguidance(AbstractDerivedDenoiser):
    """Guidance away from a weaker version of the network: weak + scale (denoiser - weak).

    See Karras et al. 2024, "Guiding a diffusion model with a bad version of itself". `weak` is a network that was
    trained for fewer steps, is smaller, or has no labels; its path is that of `denoiser`. Raises `BadInput` naming
    `weak` if its images have another shape, or it has another number of classes.
    """

    denoiser: AbstractDenoiser
    weak: AbstractDenoiser
    scale: Scalar

    def __init__(self, denoiser: AbstractDenoiser, weak: AbstractDenoiser, scale: float | Scalar):
        self.denoiser, self.weak, self.scale = denoiser, weak, _scale(scale)
        hint, ours, theirs = "Use a checkpoint trained on the same data", denoiser.model, weak.model
        if theirs.image_shape != ours.image_shape:
            problem = f"its images have the shape {theirs.image_shape}, not {ours.image_shape}"
            raise BadInput("weak", problem, hint)
        if theirs.num_classes not in (None, ours.num_classes):
            raise BadInput("weak", f"it has {theirs.num_classes} classes, not {ours.num_classes}", hint)

    @property
    def ends(self) -> Ends:
        """The (last, first) time at which both denoisers may be evaluated."""
        return _common(self.denoiser.ends, self.weak.ends)

    def with_cond(self, cond: AbstractCond) -> "Autoguidance":
        """Returns the same guidance with other conditioning.

        If the conditioning of `weak` is of another type, it receives only the label.
        """
        same = type(cond) is type(self.weak.cond)
        weak = self.weak.with_cond(cond if same else self.weak.model.cond(cond.y))
        return Autoguidance(self.denoiser.with_cond(cond), weak, self.scale)

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the guided clean image and noise."""
        return _extrapolate(self.weak(x_t, t), self.denoiser(x_t, t), self.scale)


class Interval(AbstractDerivedDenoiser):
    """Guidance in a limited interval: `guided` at path times in [low, high], and the plain `denoiser` elsewhere.

    See Kynkaanniemi et al. 2024, "Applying guidance in a limited interval", who define the interval by noise levels. If
    t is not batched, as in a sampler with fixed steps that is vmapped over images, only one of the two is computed.
    Raises `BadInput` naming `cfg_interval` unless 0 <= low < high <= 1.
    """

    guided: AbstractDenoiser
    denoiser: AbstractDenoiser
    low: float
    high: float

    def __init__(self, guided: AbstractDenoiser, denoiser: AbstractDenoiser, low: float, high: float):
        self.guided, self.denoiser, self.low, self.high = guided, denoiser, low, high
        if not 0.0 <= low < high <= 1.0:
            problem = f"{low:g} .. {high:g} is not an interval within [0, 1]"
            raise BadInput("cfg_interval", problem, "Give two times of the path, 0 <= low < high <= 1")

    @property
    def ends(self) -> Ends:
        """The (last, first) time at which both denoisers may be evaluated."""
        return _common(self.guided.ends, self.denoiser.ends)

    def with_cond(self, cond: AbstractCond) -> "Interval":
        """Returns the same guidance with other conditioning."""
        return Interval(self.guided.with_cond(cond), self.denoiser.with_cond(cond), self.low, self.high)

    def __call__(self, x_t: Image, t: Time) -> Denoised:
        """Returns the clean image and noise of the denoiser that applies at `t`."""
        inside = (t >= self.low) & (t <= self.high)
        branches = [lambda x, denoiser=each: denoiser(x, t) for each in (self.guided, self.denoiser)]
        return jax.lax.cond(inside, *branches, x_t)


def guide(denoiser: AbstractDenoiser, cfg_scale: float) -> AbstractDenoiser:
    """Applies classifier-free guidance. A scale of 1 returns the denoiser itself, at half the cost.

    Raises `BadInput` naming `cfg_scale` for any other scale if the network has no labels.
    """
    return denoiser if cfg_scale == 1.0 else ClassifierFree(denoiser, cfg_scale)


def _common(one: Ends, other: Ends) -> Ends:
    return max(one[0], other[0]), min(one[1], other[1])


def _scale(value: float | Scalar) -> Scalar:
    # An array, so that changing the scale does not trigger recompilation.
    return jnp.asarray(1.0 * value)


def _extrapolate(start: Denoised, end: Denoised, scale: Scalar) -> Denoised:
    return jax.tree.map(lambda a, b: a + scale.astype(a.dtype) * (b - a), start, end)
