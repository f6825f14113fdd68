"""How far one set of features is from another: Frechet distance and kernel distance. In numpy and float64."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from umd_eqx.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance (as `np.cov`: over n - 1) of `count` feature vectors. The covariance of one is 0."""

    count: int
    mean: Float64[np.ndarray, "d"]
    covariance: Float64[np.ndarray, "d d"]


def statistics_of(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Of features at once; raises `ValueError` for none."""
    if len(features) < 1:
        raise ValueError("no features to take statistics of")
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both sets together, from those of each (Chan, Golub and LeVeque 1983, eq. 2.1).

    Sound where the mean is large beside the spread, as sums of squares are not. Raises `ValueError` for features of
    different lengths.
    """
    _same_length(a.mean.size, b.mean.size)
    count = a.count + b.count
    apart = b.mean - a.mean
    scatter = (a.count - 1) * a.covariance + (b.count - 1) * b.covariance
    scatter += np.outer(apart, apart) * (a.count * b.count / count)
    return Statistics(count, a.mean + apart * (b.count / count), scatter / (count - 1))


def add(statistics: Statistics | None, features: Float[np.ndarray, "n d"]) -> Statistics:
    """The statistics with more features; None is those of nothing yet. Raises `ValueError` as `merge` does."""
    more = statistics_of(features)
    return more if statistics is None else merge(statistics, more)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    At least 0, in the squared unit of the features. With C = F F' the trace of the root is the sum of the singular
    values of F_a' F_b. Nothing is inverted and nothing is added to a diagonal, so that it holds for singular
    covariances, too: fewer images than features.

    Raises `BadInput` for statistics of fewer than 2 images, `ValueError` for other lengths or what is not finite.
    """
    _same_length(a.mean.size, b.mean.size)
    if min(a.count, b.count) < 2:
        raise BadInput("--samples", "a covariance needs two images", "Use 2 or more; many more than features is better")
    if not all(np.isfinite(part).all() for part in (a.mean, a.covariance, b.mean, b.covariance)):
        raise ValueError("statistics that are not finite")
    apart = a.mean - b.mean
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return max(0.0, float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * root))


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d rank"]:
    values, vectors = np.linalg.eigh(covariance)
    # What rounding leaves of a zero has a root that is far from zero.
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def kid(
    real: Float[np.ndarray, "n d"],
    fake: Float[np.ndarray, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel inception distance: (mean, standard deviation) of `mmd` over random subsets (Binkowski et al. 2018).

    Unbiased at every number of images, so that it may come out below 0.

    **Arguments:**

    - `real`, `fake`: a row an image.
    - `subsets`: how many are drawn; 1 where the only subset is everything.
    - `subset_size`: images of each side in a subset, without repeats; at most what the smaller side has.
    - `seed`: of the draws.

    **Raises:** `BadInput` for fewer than 2 images on a side or less than one subset, `ValueError` for features of
    different lengths.
    """
    _same_length(real.shape[1], fake.shape[1])
    if subsets < 1:
        raise BadInput("--subsets", f"{subsets} subsets cannot be averaged", "Use 1 or more; 100 is usual")
    size = min(subset_size, len(real), len(fake))
    if size == len(real) == len(fake):
        subsets = 1
    rng = np.random.default_rng(seed)

    def some(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), size, replace=False)]

    values = [mmd(some(real), some(fake)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> float:
    """Squared maximum mean discrepancy under k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 3).

    The unbiased estimate (Gretton et al. 2012, eq. 3), which leaves out the pairs of an image with itself. Raises
    `BadInput` for fewer than 2 images on a side.
    """
    if min(len(real), len(fake)) < 2:
        raise BadInput("--samples", "a kernel distance needs pairs of images", "Use 2 or more on each side")
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    within = sum(_mean_of_pairs(_kernel(x, x)) for x in (real, fake))
    return float(within - 2.0 * _kernel(real, fake).mean())


def _kernel(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mean_of_pairs(kernel: Float64[np.ndarray, "n n"]) -> float:
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def _same_length(a: int, b: int) -> None:
    if a != b:
        raise ValueError(f"features of {a} and of {b} numbers are not of one extractor")
