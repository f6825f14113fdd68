"""What a head of a network predicts, and how everything else is asked of it through the path."""

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp

from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.types import Image, Time

Head = Literal["eps", "x0", "v"]
"""A quantity that is predicted: the noise, the clean image, or the v of the path."""

PredictionType = Literal["x0_eps", "x0", "v", "u"]
"""What a network predicts, a property of its architecture.

"x0_eps": clean image and noise, each by its own output, as published; "x0": the clean image; "v": the v of the path;
"u": the average of v over an interval, which for an interval of length 0 is v (MeanFlow, arXiv 2505.13447).
"""

LEAST_SIGMA = 0.05
"""The smallest sigma that the error of a clean image is divided by where it is an error of eps or v.

As in Li and He 2025 (arXiv 2511.13720), whose time runs from noise to data: 1 - t is clamped there.
"""


class Denoised(eqx.Module):
    """A clean image and noise that agree with the noised image: x_t = alpha x0 + sigma eps."""

    x0: Image
    eps: Image


class AbstractPrediction(eqx.Module):
    """The prediction for one noised image x_t at time t of a path.

    The conversions are those of the path, each of which says where it divides by zero.
    """

    @abc.abstractmethod
    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """The clean image, the noise or v: predicted as such where there is an output for it, else converted."""

    @abc.abstractmethod
    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """The clean image and the noise that agree with `x_t`.

        `head` says which output decides where there are two that may contradict each other.
        """

    @abc.abstractmethod
    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """The difference from the truth, given by `x0` and `eps`, in terms of the clean image, the noise or v."""


class X0EpsPrediction(AbstractPrediction):
    """Clean image and noise, each by its own output of the network, as in the published systems."""

    x0: Image
    eps: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """The output itself; v from both."""
        if head == "v":
            return path.v_from_x0_eps(self.x0, self.eps, t)
        return self.x0 if head == "x0" else self.eps

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """By one output, or by v. With "eps" it divides by alpha(t), with "x0" by sigma(t), with "v" by neither."""
        if head == "v":
            return Denoised(*path.x0_eps_from_v(x_t, self.read("v", path, x_t, t), t))
        if head == "eps":
            return Denoised(path.x0_from_eps(x_t, self.eps, t), self.eps)
        return Denoised(self.x0, path.eps_from_x0(x_t, self.x0, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """Of the output itself; of v, from both."""
        if head == "v":
            return path.v_from_x0_eps(self.x0 - x0, self.eps - eps, t)
        return self.x0 - x0 if head == "x0" else self.eps - eps


class X0Prediction(AbstractPrediction):
    """The clean image alone."""

    x0: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """For "eps" and "v" it divides by sigma(t)."""
        if head == "x0":
            return self.x0
        eps = path.eps_from_x0(x_t, self.x0, t)
        return eps if head == "eps" else path.v_from_x0_eps(self.x0, eps, t)

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """The only output decides, whatever `head` is. Divides by sigma(t)."""
        return Denoised(self.x0, path.eps_from_x0(x_t, self.x0, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """For "eps" and "v" the error of the clean image times a weight, in which sigma is at least `LEAST_SIGMA`."""
        difference = self.x0 - x0
        if head == "x0":
            return difference
        alpha, sigma = path.alpha(t), path.sigma(t)
        a, b = path.velocity_weights(t)
        # x_t is known, so that an error d of x0 is one of -d alpha / sigma of eps.
        weight = alpha if head == "eps" else alpha * a + sigma * b
        return -weight / jnp.maximum(sigma, LEAST_SIGMA) * difference


class VPrediction(AbstractPrediction):
    """The path's v alone."""

    v: Image

    def read(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Image:
        """Divides by nothing."""
        if head == "v":
            return self.v
        denoised = self.denoised(head, path, x_t, t)
        return denoised.x0 if head == "x0" else denoised.eps

    def denoised(self, head: Head, path: AbstractPath, x_t: Image, t: Time) -> Denoised:
        """The only output decides, whatever `head` is. Divides by nothing."""
        return Denoised(*path.x0_eps_from_v(x_t, self.v, t))

    def error(self, head: Head, path: AbstractPath, x0: Image, eps: Image, t: Time) -> Image:
        """For "x0" and "eps" the error of v times a weight: x_t is known."""
        difference = self.v - path.v_from_x0_eps(x0, eps, t)
        if head == "v":
            return difference
        dx0, deps = path.x0_eps_from_v(jnp.zeros_like(difference), difference, t)
        return dx0 if head == "x0" else deps
