"""MeanFlow: average velocities, for sampling with a single network evaluation (Geng et al. 2025, arXiv 2505.13447)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath, RectifiedFlow
from umd_eqx.core.predictions import VPrediction
from umd_eqx.core.types import NO_CLASS, Batch, IntervalCond, Metrics, Scalar
from umd_eqx.models import AbstractModel, Group
from umd_eqx.objectives.base import AbstractObjective, in_rows, mark_invalid_labels


class MeanFlowDraw(eqx.Module):
    """The random numbers of one batch, one entry per image: path times r <= t, noise, and which labels are dropped."""

    t: Float[Array, "b"]
    r: Float[Array, "b"]
    eps: Float[Array, "b h w c"]
    drop_label: Bool[Array, "b"]


class MeanFlow(AbstractObjective):
    """The MeanFlow identity u = v - (t - r) du/dt (eq. 6) as a regression, along the rectified flow.

    u(z_t, r, t) is the average velocity from r to t; du/dt is its derivative along the flow, a Jacobian-vector product
    in (z, r, t) with tangents (v, 0, 1), v = eps - x0. No gradient flows through the target (eq. 9). For r = t, this is
    flow matching. The squared error of an image is divided by itself to the power `adaptive_power` (eq. 22).
    """

    interval_prob: float = eqx.field(static=True, default=0.25)
    """Share of the images trained on an interval of positive length, r < t; the others have r = t."""
    time_mean: float = eqx.field(static=True, default=-0.4)
    """Mean of the normal distribution that the sigmoid maps to the times."""
    time_std: float = eqx.field(static=True, default=1.0)
    """Standard deviation of the normal distribution that the sigmoid maps to the times."""
    adaptive_power: float = eqx.field(static=True, default=1.0)
    """How strongly large errors are down-weighted; 0 gives the plain squared error."""
    label_dropout: float = eqx.field(static=True, default=0.1)
    """Probability that the label of an image is replaced by `NO_CLASS` (for classifier-free guidance)."""

    @property
    def sees_clean_images(self) -> bool:
        """Always False: every image is noised."""
        return False

    @property
    def hides(self) -> bool:
        """Always False: every patch is visible."""
        return False

    def draw(self, key: PRNGKeyArray, model: AbstractModel, path: AbstractPath, shape: tuple[int, ...]) -> MeanFlowDraw:
        """Draws two logit-normal times, the later one being t, the noise, and which labels are dropped."""
        time_key, interval_key, eps_key, drop_key = jax.random.split(key, 4)
        normal = jax.random.normal(time_key, (2, shape[0]), jnp.float32)
        times = jax.nn.sigmoid(self.time_mean + self.time_std * normal)
        t, earlier = jnp.max(times, axis=0), jnp.min(times, axis=0)
        has_length = jax.random.bernoulli(interval_key, jnp.asarray(self.interval_prob, jnp.float32), shape[:1])
        return MeanFlowDraw(
            t=t,
            r=jnp.where(has_length, earlier, t),
            eps=jax.random.normal(eps_key, shape, jnp.float32),
            drop_label=jax.random.bernoulli(drop_key, jnp.asarray(self.label_dropout, jnp.float32), shape[:1]),
        )

    def loss(
        self, model: AbstractModel, path: AbstractPath, batch: Batch, draw: MeanFlowDraw
    ) -> tuple[Scalar, Metrics]:
        """Returns the mean of the weighted errors, and `u` and `v`.

        `u` is the mean squared error per pixel, and `v` the same for intervals of length 0.
        """
        x0, eps = jnp.asarray(batch.image), draw.eps
        labels = jnp.where(draw.drop_label, NO_CLASS, mark_invalid_labels(jnp.asarray(batch.label), model.num_classes))

        def u(z: Float[Array, "b h w c"], r: Float[Array, "b"], t: Float[Array, "b"]) -> Float[Array, "b h w c"]:
            def cond(y: Array, r: Array, t: Array) -> IntervalCond:
                conditioning = model.cond(y)
                assert isinstance(conditioning, IntervalCond)
                return conditioning.at(path.network_time(t), path.network_time(r))

            images, conds = in_rows((z, jax.vmap(cond)(labels, r, t)), z.shape[0])
            (prediction,) = model.forward_groups([Group(images, conds, None)])
            assert isinstance(prediction, VPrediction)
            return prediction.v[:, 0]

        z, v = jax.vmap(path.interpolate)(x0, eps, draw.t), eps - x0
        found, rate = jax.jvp(u, (z, draw.r, draw.t), (v, jnp.zeros_like(draw.r), jnp.ones_like(draw.t)))
        length = (draw.t - draw.r)[:, None, None, None]
        target = jax.lax.stop_gradient(v - length * rate)
        errors = jnp.mean(jnp.square(found - target), axis=(1, 2, 3))
        # The sum over pixels, as in the paper; its constant keeps the weight finite.
        weights = (errors * found[0].size + 1e-3) ** -self.adaptive_power
        instant = (draw.t == draw.r).astype(errors.dtype)
        metrics = {"u": jnp.mean(errors), "v": jnp.sum(errors * instant) / jnp.maximum(jnp.sum(instant), 1.0)}
        return jnp.mean(jax.lax.stop_gradient(weights) * errors * found[0].size), metrics

    def require_suitable(self, model: AbstractModel, path: AbstractPath) -> None:
        """Raises `BadInput` naming `model.prediction` or `path` unless they are "u" and the rectified flow."""
        if model.prediction != "u":
            problem = f"the network predicts {model.prediction}, not average velocities"
            raise BadInput("model.prediction", problem, "Use u")
        if not isinstance(path, RectifiedFlow):
            raise BadInput("path", f"{type(path).__name__} is not the rectified flow", "Use RectifiedFlow()")

    def period(self, batch_size: int) -> int:
        """Always 1: all images are treated alike."""
        return 1

    def validate(self, num_patches: int, batch_size: int) -> None:
        """Raises `BadInput` for a probability outside [0, 1], or a standard deviation or power below 0."""
        for name in ("interval_prob", "label_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                subject = f"objective.{name}"
                raise BadInput(subject, f"{getattr(self, name)} is outside [0, 1]", "Give a probability")
        for name in ("time_std", "adaptive_power"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                subject = f"objective.{name}"
                raise BadInput(subject, f"{getattr(self, name)} is negative or not finite", "Use 0 or more")
