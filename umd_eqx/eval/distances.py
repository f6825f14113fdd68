"""Distances between two sets of features: the Frechet distance and the kernel distance, in numpy and float64."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from umd_eqx.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance (normalised by n - 1, as `np.cov`) of `count` feature vectors; 0 for a single vector."""

    count: int
    mean: Float64[np.ndarray, "d"]
    covariance: Float64[np.ndarray, "d d"]


def statistics_of(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Returns the statistics of features. Raises `ValueError` if there are none."""
    if len(features) < 1:
        raise ValueError("no features to compute statistics of")
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Returns the statistics of the union of two sets (Chan, Golub and LeVeque 1983, eq. 2.1).

    Unlike sums of squares, this is numerically stable if the mean is large relative to the standard deviation. Raises
    `ValueError` for features of different lengths.
    """
    _same_length(a.mean.size, b.mean.size)
    count = a.count + b.count
    apart = b.mean - a.mean
    scatter = (a.count - 1) * a.covariance + (b.count - 1) * b.covariance
    scatter += np.outer(apart, apart) * (a.count * b.count / count)
    return Statistics(count, a.mean + apart * (b.count / count), scatter / (count - 1))


def add(statistics: Statistics | None, features: Float[np.ndarray, "n d"]) -> Statistics:
    """Returns statistics updated with more features; None are those of an empty set. Raises as `merge` does."""
    more = statistics_of(features)
    return more if statistics is None else merge(statistics, more)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Returns the Frechet distance |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), which is at least 0.

    Source: Dowson and Landau 1982; Heusel et al. 2017, eq. 6. The unit is the squared unit of the features. With
    C = F F', the trace of the root is the sum of the singular values of F_a' F_b. No matrix is inverted and no diagonal
    is regularised, which makes it valid for singular covariances, of fewer images than features.

    Raises `BadInput` for statistics of fewer than 2 images, `ValueError` for different lengths or non-finite values.
    """
    _same_length(a.mean.size, b.mean.size)
    if min(a.count, b.count) < 2:
        raise BadInput("samples", "a covariance needs two images", "Use 2 or more, better many more than features")
    if not all(np.isfinite(part).all() for part in (a.mean, a.covariance, b.mean, b.covariance)):
        raise ValueError("the statistics are not finite")
    apart = a.mean - b.mean
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return max(0.0, float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * root))


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d rank"]:
    values, vectors = np.linalg.eigh(covariance)
    # Eigenvalues that are 0 up to rounding are dropped: their square roots would not be close to 0.
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
    """Returns the kernel inception distance: (mean, standard deviation) of `mmd` over random subsets.

    Source: Binkowski et al. 2018. The estimate is unbiased for every number of images and may be negative.

    **Arguments:**

    - `real`, `fake`: features, one row per image.
    - `subsets`: number of random subsets; 1 is used if the only subset is the whole set.
    - `subset_size`: number of images per set in a subset, drawn without replacement, limited by the smaller set.
    - `seed`: seed of the subsets.

    **Raises:** `BadInput` for fewer than 2 images in a set or less than one subset, `ValueError` for features of
    different lengths.
    """
    _same_length(real.shape[1], fake.shape[1])
    if subsets < 1:
        raise BadInput("subsets", f"{subsets} subsets cannot be averaged", "Use 1 or more; 100 is common")
    size = min(subset_size, len(real), len(fake))
    if size == len(real) == len(fake):
        subsets = 1
    rng = np.random.default_rng(seed)

    def some(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), size, replace=False)]

    values = [mmd(some(real), some(fake)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> float:
    """Returns the squared maximum mean discrepancy under k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 3).

    This is the unbiased estimate (Gretton et al. 2012, eq. 3), without the pairs of an image with itself. Raises
    `BadInput` for fewer than 2 images in a set.
    """
    if min(len(real), len(fake)) < 2:
        raise BadInput("samples", "a kernel distance needs pairs of images", "Use 2 or more in each set")
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    within = sum(_mean_of_pairs(_kernel(x, x)) for x in (real, fake))
    return float(within - 2.0 * _kernel(real, fake).mean())


def _kernel(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mean_of_pairs(kernel: Float64[np.ndarray, "n n"]) -> float:
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def _same_length(a: int, b: int) -> None:
    if a != b:
        raise ValueError(f"features of lengths {a} and {b} are not from the same extractor")
