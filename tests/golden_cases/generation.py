"""The metrics of generated images, on the recorded activations, probabilities and images."""

import re
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from golden_cases.base import Comparison, Folder, GoldenError, Group, Recorded, close
from golden_cases.guidance import guidance
from umd_eqx.core.sharding import make_mesh
from umd_eqx.eval.activations import Features, activations
from umd_eqx.eval.distances import Statistics, add, frechet_distance
from umd_eqx.eval.scores import inception_score
from umd_eqx.models.extractors.base import AbstractExtractor, Activations, resize_bilinear

_FRECHET = re.compile(r"frechet(?:_(\d+)_vs_(\d+)\w*)?")
_SCORE = re.compile(r"inception_score(?:_(\d+)splits?)?")
_SIDE = 299
_ROW, _COLUMN = 150, 100


def _streamed(recorded: Recorded, number: str) -> Statistics:
    """The statistics of the activations of this number, in parts as they come from a network."""
    names = [name for name in recorded if re.fullmatch(rf"acts{number}(_\w+)?", name)]
    if len(names) != 1:
        raise GoldenError(f"{recorded.name}: {len(names)} arrays of activations {number}")
    statistics = None
    for part in np.array_split(recorded[names[0]], 4):
        statistics = add(statistics, part)
    assert statistics is not None
    return statistics


def _recorded_statistics(recorded: Recorded, number: str) -> Statistics:
    mean, covariance = (recorded[f"{name}{number}"].astype(np.float64) for name in ("mu", "sigma"))
    return Statistics(2, mean, covariance)  # the count is not recorded, and no part of the distance


def _frechet(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["fid_is"]
    for key in recorded:
        if not (match := _FRECHET.fullmatch(key)):
            continue
        numbers = [match[1] or "1", match[2] or "2"]
        distance = frechet_distance(*(_streamed(recorded, number) for number in numbers))
        yield _relative(key, distance, recorded.scalar(key))
        if all(f"mu{number}" in recorded for number in numbers):
            # Means that were taken in float32, as the recorded distance has them.
            distance = frechet_distance(*(_recorded_statistics(recorded, number) for number in numbers))
            yield _relative(f"{key} of mu, sigma", distance, recorded.scalar(key))


def _relative(what: str, ours: float, recorded: float) -> Comparison:
    return close(what, np.asarray(ours), np.asarray(recorded), scale=abs(recorded))


class FakeInception(AbstractExtractor):
    """The network of the README: means of four overlapping quadrants, and two matrices."""

    to_features: jax.Array
    to_logits: jax.Array
    name: str = eqx.field(static=True, default="golden")

    def __call__(self, image) -> Activations:
        x = 2.0 * (resize_bilinear(image, _SIDE) / 255.0) - 1.0
        half = (_SIDE + 1) // 2
        edges = (slice(None, half), slice(half - 1, None))
        means = jnp.concatenate([x[rows, columns].mean(axis=(0, 1)) for rows in edges for columns in edges])
        features = jnp.matmul(means, self.to_features, precision="highest")
        return Activations(features, jnp.matmul(features, self.to_logits, precision="highest"))


def _through_the_fake_network(recorded: Recorded) -> Features:
    extractor = FakeInception(jnp.asarray(recorded["fake_PW"]), jnp.asarray(recorded["fake_PL"]))
    # In batches of another size than the recorded one, the last of them not full.
    return activations(extractor, [recorded["images_uint8"]], make_mesh(jax.devices()[:1]), batch_size=16)


def _scores(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["fid_is"]
    for key in recorded:
        if match := _SCORE.fullmatch(key):
            score, _ = inception_score(recorded["p_yx"], int(match[1] or 10))
            yield close(key, np.asarray(score), recorded[key])
        elif match := re.fullmatch(r"mu(\d+)", key):
            statistics = _streamed(recorded, match[1])
            yield close(key, statistics.mean, recorded[key])
            yield close(f"sigma{match[1]}", statistics.covariance, recorded[f"sigma{match[1]}"])
    if "fake_PW" in recorded:
        found = _through_the_fake_network(recorded)
        yield close("stats_mu", found.statistics.mean, recorded["stats_mu"])
        yield close("stats_sigma", found.statistics.covariance, recorded["stats_sigma"])
        yield close("stats_is", np.asarray(inception_score(found.probabilities)[0]), recorded["stats_is"])


def _resized(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["fid_is"]
    image = resize_bilinear(jnp.asarray(recorded["images_uint8"][0], jnp.float32), _SIDE)
    # In grey levels, whatever their size.
    yield close("resized_row", image[_ROW], recorded["resized_row"], scale=1.0)
    yield close("resized_col", image[:, _COLUMN], recorded["resized_col"], scale=1.0)


def _scores_and_guidance(folder: Folder) -> Iterator[Comparison]:
    yield from _scores(folder)
    yield from guidance(folder)


GROUPS = (
    Group("Frechet distance", ("fid_is",), 1e-6, _frechet),
    Group("Inception score, statistics, guidance", ("fid_is", "model_*"), 1e-5, _scores_and_guidance),
    Group("resize to 299", ("fid_is",), 2e-3, _resized),
)
