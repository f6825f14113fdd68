"""Losses from recorded predictions, and loss and gradients of the whole network on recorded randomness."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from golden_cases.base import Comparison, Folder, GoldenError, Group, Recorded, close
from golden_cases.layout import to_reference
from golden_cases.network import model_of
from umd_eqx.core.paths import CosineTable
from umd_eqx.core.predictions import PredictionType, X0EpsPrediction
from umd_eqx.core.sharding import make_mesh
from umd_eqx.core.types import NO_CLASS, Batch, Cond, Representation
from umd_eqx.models import AbstractModel, AbstractPatchModel
from umd_eqx.objectives import AbstractObjective, Draw, Unified, denoising, masked_denoising, masked_reconstruction
from umd_eqx.objectives.base import split_by_period
from umd_eqx.training.step import Parts, loss_and_grads

PATH = CosineTable()  # of the recorded x_t
PUBLISHED = (0.5, 0.375, 0.75)  # UMD, what the end-to-end case is of
NULL_GRADIENT = 1e-4
"""Share of the whole gradient's norm below which the norm of a leaf stops being its scale: the gradient of a key's bias
is 0 but for rounding, which no two programs do alike."""


class Config(NamedTuple):
    """(p, mask ratio, mask ratio of the clean images) of the reference."""

    no_noise_prob: float
    mask_ratio: float
    mask_ratio_no_noise: float

    def objective(self) -> AbstractObjective:
        """The same in our objectives."""
        noised = masked_denoising(self.mask_ratio) if self.mask_ratio > 0 else denoising()
        clean = masked_reconstruction(self.mask_ratio_no_noise)
        if self.no_noise_prob == 0:
            return noised
        return clean if self.no_noise_prob == 1 else Unified(noised, clean, self.no_noise_prob)


class Case(NamedTuple):
    """Recorded images and randomness, placed where our objective looks for the noised and for the clean ones."""

    objective: AbstractObjective
    batch: Batch
    draw: Draw


def case(recorded: Recorded, config: Config) -> Case:
    """The reference takes the first images as noised and the last n0 as clean; we split by position in a period."""
    images, t, noise = recorded["images"], recorded["t"].reshape(-1), recorded["noise"]
    size = images.shape[0]
    clean = int(size * config.no_noise_prob)
    noisy = size - clean
    places = jnp.concatenate([kind.reshape(-1) for kind in split_by_period(jnp.arange(size), noisy, clean)])
    orders = [recorded["mask_noise_noised"][:noisy], recorded["mask_noise_clean"][:clean]]

    def put(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(rows[np.argsort(places)])

    draw = Draw(
        t=put((t + 1).astype(np.float32) / np.float32(PATH.steps)),
        eps=put(noise),
        order=put(np.argsort(np.concatenate(orders), axis=1).astype(np.int32)),
        drop_label=jnp.zeros(size, bool),
    )
    batch = Batch(put(images), jnp.zeros(size, jnp.int32), jnp.ones(size, bool))
    return Case(config.objective(), batch, draw)


@cache
def _parts(config: Config) -> Parts:
    # Made once: the compiler knows them by identity.
    return Parts(config.objective(), PATH, optax.identity(), optax.constant_schedule(0.0), make_mesh(), seed=0)


_loss_and_grads = eqx.filter_jit(loss_and_grads)
_interpolate = jax.jit(jax.vmap(PATH.interpolate))


@eqx.filter_jit
def _loss(objective: AbstractObjective, model: AbstractModel, batch: Batch, draw: Draw) -> tuple[Any, dict[str, Any]]:
    return objective.loss(model, PATH, batch, draw)


class Playback(AbstractPatchModel):
    """Answers with recorded predictions: those of the recorded input that is nearest to the one it is given."""

    inputs: jax.Array
    predictions: jax.Array
    clean_inputs: jax.Array
    clean_predictions: jax.Array
    num_classes: int | None = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    num_patches: int = eqx.field(static=True)
    prediction: PredictionType = eqx.field(static=True, default="x0_eps")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.inputs.shape[1:]

    def cond(self, y: Any = NO_CLASS) -> Cond:
        return Cond(jnp.zeros(()), jnp.asarray(y))

    def __call__(self, x: Any, cond: Any, view: Any = None, *, key: Any = None) -> X0EpsPrediction:
        def recall(inputs: jax.Array, predictions: jax.Array) -> jax.Array:
            return predictions[jnp.argmin(jnp.sum((inputs - x) ** 2, axis=(1, 2, 3)))]

        noised = recall(self.inputs, self.predictions)
        values = jnp.where(cond.t == 0, recall(self.clean_inputs, self.clean_predictions), noised)
        x0, eps = jnp.split(values, 2, axis=-1)
        return X0EpsPrediction(x0=x0, eps=eps)

    def represent(self, x: Any, cond: Any) -> Representation:
        raise NotImplementedError


def _playback(recorded: Recorded, config: Config) -> Playback:
    images, n = recorded["images"], recorded["mask_noise_noised"].shape[1]
    clean = int(images.shape[0] * config.no_noise_prob)
    noisy = images.shape[0] - clean
    # A kind without images still needs a row, or there is nothing to take the nearest of.
    return Playback(
        inputs=jnp.asarray(recorded["x_t"][: max(noisy, 1)]),
        predictions=jnp.asarray(recorded["pred_noised"][: max(noisy, 1)]),
        clean_inputs=jnp.asarray(images[noisy:] if clean else images[:1]),
        clean_predictions=jnp.asarray(recorded["pred_clean"][: max(clean, 1)]),
        num_classes=None,
        patch=round((images.shape[1] * images.shape[2] / n) ** 0.5),
        num_patches=n,
    )


def named(objective: AbstractObjective, loss: Any, metrics: dict[str, Any]) -> dict[str, float]:
    """Our loss and its parts by the reference's names."""
    if not isinstance(objective, Unified):
        part = "denoising" if objective.noised else "reconstruction"
        metrics = {f"{part}/{name}": value for name, value in metrics.items()} | {f"{part}/loss": loss}
    names = {
        "dit_loss": "denoising/loss",
        "mae_loss": "reconstruction/loss",
        "eps_loss": "denoising/eps_visible",
        "x0_loss": "denoising/x0_hidden",
    }
    return {"loss": float(loss)} | {ours: float(metrics[name]) for ours, name in names.items() if name in metrics}


def _compare_losses(what: str, ours: dict[str, float], recorded: dict[str, np.ndarray]) -> Iterator[Comparison]:
    for name in ("loss", "mae_loss", "eps_loss", "x0_loss", "dit_loss"):
        value = recorded.get(name)
        if value is None or np.isnan(value).any():
            continue  # NaN: "not computed"
        if name not in ours and np.all(value == 0):
            continue  # "defined as 0": a kind without images
        yield close(f"{what}/{name}", np.asarray(ours.get(name, np.nan)), value)


def _config(recorded: Recorded, name: str) -> Config:
    values = recorded[f"{name}/config"] if f"{name}/config" in recorded or name != "umd" else np.asarray(PUBLISHED)
    if values.shape != (3,):
        raise GoldenError(f"{recorded.name}: {name}/config has shape {values.shape}, not (3,)")
    return Config(*(float(value) for value in values))


def _losses(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["loss"]
    times = (recorded["t"].reshape(-1) + 1).astype(np.float32) / np.float32(PATH.steps)
    noised = _interpolate(jnp.asarray(recorded["images"]), jnp.asarray(recorded["noise"]), jnp.asarray(times))
    yield close("x_t", noised, recorded["x_t"])
    for name in [key.removesuffix("/config") for key in recorded if key.endswith("/config")]:
        config = _config(recorded, name)
        objective, batch, draw = case(recorded, config)
        loss, metrics = _loss(objective, _playback(recorded, config), batch, draw)
        yield from _compare_losses(name, named(objective, loss, metrics), recorded.under(name))
    if folder.has("e2e_loss_grad"):
        for kind, (losses, _) in _end_to_end(folder).items():
            yield from _compare_losses(f"e2e {kind}", losses, folder.files["e2e_loss_grad"].under(kind))


def _end_to_end(folder: Folder) -> dict[str, tuple[dict[str, float], dict[str, np.ndarray]]]:
    """By kind of model: the losses, and the gradient in the reference's names."""
    recorded = folder.files["e2e_loss_grad"]

    def compute() -> dict:
        found = {}
        config = _config(folder.files["loss"], "umd")
        for kind in dict.fromkeys(key.split("/")[0] for key in recorded):
            if not folder.has(f"params_{kind}"):
                folder.skip(f"{recorded.name}: {kind} has no params_{kind}.npz")
                continue
            objective, batch, draw = case(folder.files["loss"], config)
            model = model_of(folder, kind, labels=False)
            (loss, metrics), grads = _loss_and_grads(_parts(config), model, batch, draw)
            found[kind] = named(objective, loss, metrics), to_reference(grads)
        return found

    return folder.once("end to end", compute)


def norm(leaves: Any) -> float:
    """The joint norm of some arrays, in float64."""
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in leaves)))


def _gradients(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["e2e_loss_grad"]
    for kind, (_, grads) in _end_to_end(folder).items():
        least = NULL_GRADIENT * norm(grads.values())
        statistics = recorded.under(f"{kind}/grad_stats")
        _same_leaves(recorded.name, grads, statistics)
        for name, value in statistics.items():
            g = np.asarray(grads[name], np.float64).ravel()
            ours = np.asarray([g.sum(), np.linalg.norm(g), np.sum(g * np.cos(np.arange(g.size)))])
            yield close(f"{kind} statistics {name}", ours, value, scale=max(float(value[1]), least))
    if not folder.has("adamw"):
        return
    full = folder.files["adamw"].under("grad1")
    of_kinds = {kind: grads for kind, (_, grads) in _end_to_end(folder).items() if grads.keys() == full.keys()}
    if not of_kinds:
        folder.skip("adamw.npz: grad1 has the leaves of no end-to-end case")
        return
    kind = "adaln" if "adaln" in of_kinds else next(iter(of_kinds))
    least = NULL_GRADIENT * norm(full.values())
    for name, value in full.items():
        yield close(f"{kind} grad1 {name}", of_kinds[kind][name], value, scale=max(norm([value]), least))


def _gradient_norm(folder: Folder) -> Iterator[Comparison]:
    for kind, (_, grads) in _end_to_end(folder).items():
        value = folder.files["e2e_loss_grad"][f"{kind}/grad_norm"]
        yield close(f"{kind} grad_norm", np.asarray(norm(grads.values())), value, scale=float(value))


def _same_leaves(file: str, ours: dict[str, np.ndarray], recorded: dict[str, np.ndarray]) -> None:
    if extra := set(ours) ^ set(recorded):
        raise GoldenError(f"{file}: leaves of one side alone: {', '.join(sorted(extra))}")


_E2E = ("e2e_loss_grad", "loss", "params_*")
GROUPS = (
    Group("losses", ("loss",), 5e-6, _losses),
    Group("gradients (of the leaf's norm)", _E2E, 1e-4, _gradients),
    Group("gradient norm (relative)", _E2E, 1e-5, _gradient_norm),
)
