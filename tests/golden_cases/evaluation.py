"""Diffusion tables, sampling, and the few-shot probe."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from golden_cases.base import Comparison, Folder, GoldenError, Group, close, exact
from umd_eqx.core.paths import AbstractDiscretePath, CosineTable, LinearTable
from umd_eqx.core.tables import cosine_betas, diffusion_tables, linear_betas
from umd_eqx.eval.probes import RidgeProbe, draw_shots, ridge_probe

_PATHS: dict[str, tuple[Callable[[int], np.ndarray], type[AbstractDiscretePath]]] = {
    "cosine": (cosine_betas, CosineTable),
    "linear": (linear_betas, LinearTable),
}
_WRONG = {"posterior_variance", "posterior_log_variance_clipped"}
"""The reference's slip (quirk 8), and its logarithm."""


def _tables(folder: Folder) -> Iterator[Comparison]:
    for kind in folder.kinds("gd"):
        recorded = folder.files[f"gd_{kind}"]
        betas = recorded["betas"]
        if kind in _PATHS:
            make_betas, path = _PATHS[kind]
            # Of the name alone, not of the recorded betas. The levels of a path are the same numbers once more.
            tables = diffusion_tables(make_betas(betas.size))
            yield close(f"{kind} path", path(steps=betas.size).alphas_cumprod(), recorded["alphas_cumprod"])
        else:
            folder.skip(f"{recorded.name}: betas of a kind that is not ours; what follows from them is compared")
            tables = diffusion_tables(betas.astype(np.float64))
        for name, value in recorded.items():
            if name in _WRONG:
                continue
            if name not in tables:
                folder.skip(f"{recorded.name}: unknown table {name}")
                continue
            yield close(f"{kind} {name}", tables[name], value)
        # What should have been recorded, from the right tables that were: Ho et al. 2020, eq. 7.
        variance = betas * (1.0 - recorded["alphas_cumprod_prev"]) / (1.0 - recorded["alphas_cumprod"])
        logarithm = np.log(np.append(variance[1], variance[1:]))
        yield close(f"{kind} posterior_variance (right)", tables["posterior_variance"], variance)
        yield close(f"{kind} its logarithm", tables["posterior_log_variance_clipped"], logarithm)


_SHOTS = re.compile(r"(seed(\d+)_shots?(\d+))/idx")


def _fewshot_cases(folder: Folder) -> Iterator[tuple[str, np.ndarray]]:
    """(name, our indices) of each recorded draw."""
    recorded = folder.files["fewshot"]
    for key in recorded:
        if match := _SHOTS.fullmatch(key):
            yield match[1], draw_shots(recorded["y_train"], int(match[3]), int(match[2]))


def _probe(folder: Folder, name: str) -> RidgeProbe:
    # Fitted to the recorded draw, so that a wrong draw of ours does not fail three groups.
    recorded = folder.files["fewshot"]
    drawn = recorded[f"{name}/idx"]
    classes = int(max(recorded["y_train"].max(), recorded["y_test"].max())) + 1
    if drawn.size and not 0 <= drawn.min() <= drawn.max() < len(recorded["y_train"]):
        raise GoldenError(f"fewshot.npz: {name}/idx points outside the training images")
    fit = partial(ridge_probe, recorded["x_train"][drawn], recorded["y_train"][drawn], classes)
    return folder.once(f"probe {name}", fit)


def _indices(folder: Folder) -> Iterator[Comparison]:
    for name, ours in _fewshot_cases(folder):
        yield exact(f"{name}/idx", ours, folder.files["fewshot"][f"{name}/idx"])


def _accuracy(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["fewshot"]
    truth = recorded["y_test"]
    for name, _ in _fewshot_cases(folder):
        ours = np.mean(_probe(folder, name).predict(recorded["x_test"]) == truth)
        # One test point is the tolerance for the 200 of the README; fewer are scaled to it.
        error = abs(float(ours) - recorded.scalar(f"{name}/acc")) * min(1.0, truth.size / 200)
        yield Comparison(f"{name}/acc", round(error, 6))  # the recorded one is float32


def _weights(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["fewshot"]
    for name, _ in _fewshot_cases(folder):
        if f"{name}/w" in recorded:
            probe = _probe(folder, name)
            yield close(f"{name}/w", probe.weights, recorded[f"{name}/w"])
            yield close(f"{name}/mean", probe.mean, recorded[f"{name}/mean"].reshape(-1))
            yield close(f"{name}/std", probe.std, recorded[f"{name}/std"].reshape(-1))


GROUPS = (
    Group("diffusion tables", ("gd_*",), 1e-13, _tables),
    Group("few-shot, indices", ("fewshot",), 0.0, _indices),
    Group("few-shot, accuracy", ("fewshot",), 0.005, _accuracy),
    Group("few-shot, weights", ("fewshot",), 1e-3, _weights),
)
