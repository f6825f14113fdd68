"""Quality and diversity of images in float64: Inception score, precision and recall, density and coverage."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from umd_eqx.core.errors import BadInput

_MAX_ENTRIES = 2**24
"""Number of distances that are held at once: 128 MB."""
_ROUNDING_ERROR = 1e-13
"""Squared distances below this fraction of the squared lengths are rounding errors and are set to 0."""


def inception_score(probabilities: Float[np.ndarray, "n classes"], splits: int = 10) -> tuple[float, float]:
    """Returns the (mean, standard deviation) over splits of exp(E KL(p(y|x) | p(y))) (Salimans et al. 2016).

    The range is from 1 (all images have the same p(y|x)) to the number of classes. A probability of exactly 0
    contributes 0; the reference returns NaN.

    **Arguments:**

    - `probabilities`: p(y|x), one row per image, which sums to 1.
    - `splits`: number of consecutive parts; part i starts at image `i n // splits`. p(y) is the mean of the part.

    **Raises:** `BadInput` for no split or fewer images than splits.
    """
    count = len(probabilities)
    if splits < 1:
        raise BadInput("splits", f"{splits} splits cannot be averaged", "Use 1 or more; 10 is common")
    if count < splits:
        raise BadInput("samples", f"{count} images are too few for {splits} splits", f"Use {splits} or more")
    edges = [i * count // splits for i in range(splits + 1)]
    parts = [np.asarray(probabilities[a:b], np.float64) for a, b in itertools.pairwise(edges)]
    scores = [np.exp(_divergence(part)) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _divergence(p: Float64[np.ndarray, "n classes"]) -> float:
    ratio = np.divide(p, p.mean(axis=0), out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum() / len(p)


def precision_recall(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 3) -> tuple[float, float]:
    """Returns (precision, recall), both in [0, 1] (Kynkaanniemi et al. 2019, eq. 1 and 2).

    Precision is the fraction of fake images inside the ball of some real image, recall that of real images inside the
    ball of some fake one. The radius of a ball is the distance to the k-th nearest other image of the same set, and
    balls are closed.

    Raises `BadInput` for fewer than k + 1 images in a set.
    """
    real, fake = _centred(real, fake)
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    precise, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, squared in _squared_distances(real, fake):
        precise |= (squared <= real_radii[rows, None]).any(axis=0)
        recalled[rows] = (squared <= fake_radii).any(axis=1)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 5) -> tuple[float, float]:
    """Returns (density, coverage) (Naeem et al. 2020, eq. 3 and 4).

    Density is the mean number of balls of real images that a fake image is in, divided by k. It is 1 for images of the
    same distribution and may be larger. Coverage, in [0, 1], is the fraction of balls of real images that contain a
    fake image. Balls are open, as in the authors' code.

    Raises `BadInput` for fewer than k + 1 real images, or no fake images.
    """
    real, fake = _centred(real, fake)
    real_radii = radii(real, k)
    inside, covered = 0, np.zeros(len(real), bool)
    for rows, squared in _squared_distances(real, fake):
        within = squared < real_radii[rows, None]
        inside += int(within.sum())
        covered[rows] = within.any(axis=1)
    return inside / (k * len(fake)), float(covered.mean())


def radii(features: Float[np.ndarray, "n d"], k: int) -> Float64[np.ndarray, "n"]:
    """Returns the squared distance of each image to its k-th nearest other one.

    Raises `BadInput` for fewer than k + 1 images.
    """
    if k < 1:
        raise BadInput("neighbours", f"{k} is too small", "Use 1 or more")
    if len(features) < k + 1:
        problem = f"{len(features)} images are too few for {k} neighbours of each"
        raise BadInput("samples", problem, f"Use {k + 1} or more")
    blocks = _squared_distances(features, features)
    return np.concatenate(
        [np.partition(squared, k, axis=1)[:, k] for _, squared in blocks]
    )  # index 0 is the image itself


def _centred(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(real) or not len(fake):
        raise BadInput("samples", "there are no images to compare", "Use 1 or more in each set")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of lengths {real.shape[1]} and {fake.shape[1]} are not from the same extractor")
    # Centring keeps the distances and reduces the cancellation of the squared lengths.
    middle = real.mean(axis=0, dtype=np.float64)
    return real - middle, fake - middle


def _squared_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "rows m"]]]:
    """Yields slices of the rows of x with their squared distances to every row of y."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    y_squares = np.einsum("id,id->i", y, y)
    step = max(1, _MAX_ENTRIES // len(y))
    for start in range(0, len(x), step):
        some = x[start : start + step]
        squares = np.einsum("id,id->i", some, some)[:, None] + y_squares
        distances = squares - 2.0 * (some @ y.T)
        yield slice(start, start + step), np.where(distances > _ROUNDING_ERROR * squares, distances, 0.0)
