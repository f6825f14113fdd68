"""Prediction types of a network, and their conversion to noise, clean images and velocities along a path."""

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp

from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Image, Time

Head = Literal["eps", "x0", "v"]
"""A predicted quantity: the noise, the clean image, or the path's v."""

PredictionType = Literal["x0_eps", "x0", "v", "u"]
"""The prediction type of a network, a property of its architecture.

"x0_eps": clean image and noise as separate outputs, as published; "x0": the clean image; "v": the path's v;
"u": the average of v over an interval, which equals v for an interval of length 0 (MeanFlow, arXiv 2505.13447).
"""

LEARNED_WITHOUT_NOISE: tuple[PredictionType, ...] = ("x0_eps", "x0")
"""The prediction types that can be learned on images without noise. v contains noise, which is not seen in these."""

MIN_SIGMA = 0.05
"""The lower bound on sigma where the error of a clean image is converted to an error of eps or v by division by sigma.

As in Li and He 2025 (arXiv 2511.13720), who clamp 1 - t, since their time runs from noise to data.
"""


class Denoised(eqx.Module):
    """A clean image and noise that are consistent with the noised image: x_t = alpha x0 + sigma eps."""

    x0: Image
    eps: Image


class AbstractPrediction(eqx.Module):
    """Base class for the prediction for one noised image x_t at time t of a path.

    Conversions are those of `AbstractPath`, each of which documents where it divides by zero.
    """

    @abc.abstractmethod
    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """Returns the clean image, the noise or v: the network's output if it has one for `head`, else converted."""

    @abc.abstractmethod
    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """Returns a clean image and noise that are consistent with `x_t`.

        `head` selects the output to use if the network has two, which may contradict each other.
        """

    @abc.abstractmethod
    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the error with respect to the true `x0` and `eps`, in terms of the clean image, the noise or v."""


class X0EpsPrediction(AbstractPrediction):
    """A clean image and noise as separate outputs of the network, as in the published systems."""

    x0: Image
    eps: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """Returns the output for `head`; v is computed from both outputs."""
        if head == "v":
            return path.v_from_x0_eps(self.x0, self.eps, t)
        return self.x0 if head == "x0" else self.eps

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """Uses the output for `head`, or v. Divides by alpha(t) for "eps", by sigma(t) for "x0", by neither for "v"."""
        if head == "v":
            return Denoised(*path.x0_eps_from_v(x_t, self.read("v", path, x_t, t), t))
        if head == "eps":
            return Denoised(path.x0_from_eps(x_t, self.eps, t), self.eps)
        return Denoised(self.x0, path.eps_from_x0(x_t, self.x0, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the error of the output for `head`; that of v is computed from both outputs."""
        if head == "v":
            return path.v_from_x0_eps(self.x0 - x0, self.eps - eps, t)
        return self.x0 - x0 if head == "x0" else self.eps - eps


class X0Prediction(AbstractPrediction):
    """A prediction of the clean image alone."""

    x0: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """Returns the clean image, the noise or v. Divides by sigma(t) for "eps" and "v"."""
        if head == "x0":
            return self.x0
        eps = path.eps_from_x0(x_t, self.x0, t)
        return eps if head == "eps" else path.v_from_x0_eps(self.x0, eps, t)

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """Uses the only output, whatever `head` is. Divides by sigma(t)."""
        return Denoised(self.x0, path.eps_from_x0(x_t, self.x0, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the error of the clean image, for "eps" and "v" times a weight with sigma at least `MIN_SIGMA`."""
        difference = self.x0 - x0
        if head == "x0":
            return difference
        alpha, sigma = path.alpha(t), path.sigma(t)
        a, b = path.velocity_weights(t)
        # x_t is given, so an error d in x0 is an error -d alpha / sigma in eps.
        weight = alpha if head == "eps" else alpha * a + sigma * b
        return -weight / jnp.maximum(sigma, MIN_SIGMA) * difference


class VPrediction(AbstractPrediction):
    """A prediction of the path's v alone."""

    v: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """Returns the clean image, the noise or v. Divides by neither alpha(t) nor sigma(t)."""
        if head == "v":
            return self.v
        denoised = self.denoised(head, path, x_t, t)
        return denoised.x0 if head == "x0" else denoised.eps

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """Uses the only output, whatever `head` is. Divides by neither alpha(t) nor sigma(t)."""
        return Denoised(*path.x0_eps_from_v(x_t, self.v, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """Returns the error of v, for "x0" and "eps" times a weight, since x_t is given."""
        difference = self.v - path.v_from_x0_eps(x0, eps, t)
        if head == "v":
            return difference
        dx0, deps = path.x0_eps_from_v(jnp.zeros_like(difference), difference, t)
        return dx0 if head == "x0" else deps
