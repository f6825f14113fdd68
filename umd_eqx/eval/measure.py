"""All metrics of two sets of images, named by their extractor."""

from typing import NamedTuple

from umd_eqx.eval.activations import Features
from umd_eqx.eval.distances import frechet_distance, kid
from umd_eqx.eval.scores import density_coverage, inception_score, precision_recall

HIGHER_IS_BETTER = r"(.+/)?(recognised|(is|precision|recall|density|coverage)(_(?!std)\w+)?)"
"""A pattern of the metrics of generated images of which higher values are better (`Display.higher`)."""

LOWER_IS_BETTER = r"(.+/)?(not_finite|(fid|fd|kid)(_(?!std)\w+)?)"
"""A pattern of those of which lower values are better."""


class MetricNames(NamedTuple):
    """The name of each metric in reports and result files."""

    frechet: str
    inception_score: str
    inception_score_std: str
    kid: str
    kid_std: str
    precision: str
    recall: str
    density: str
    coverage: str


def metric_names(extractor: str) -> MetricNames:
    """Returns the metric names for an extractor's name (`AbstractExtractor.name`).

    Only "inception" has the published names, `fid`, `is`, `kid`, ...; metrics of any other extractor are on a different
    scale and include its name: `fd_fashion`, `is_fashion`, `kid_fashion`, ... Raises `ValueError` for an empty name.
    """
    if extractor == "inception":
        return MetricNames("fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "density", "coverage")
    if not extractor:
        raise ValueError("the extractor has no name")
    plain = ("fd", "is", "is_std", "kid", "kid_std", "precision", "recall", "density", "coverage")
    return MetricNames(*(f"{name}_{extractor}" for name in plain))


def measure(
    real: Features,
    fake: Features,
    extractor: str,
    *,
    splits: int = 10,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Returns every metric of `fake` against `real`, in the order of `MetricNames`.

    The Frechet distance is computed from the statistics, all others from the rows that were kept.

    **Arguments:**

    - `extractor`: the name of the extractor of both sets; see `metric_names`.
    - `splits`: number of splits of the Inception score, which depends on `fake` alone.
    - `subsets`, `subset_size`, `seed`: arguments of `kid`.

    **Raises:** `BadInput` if a set has too few images for a metric; 10 suffice for all of them by default.
    """
    score = inception_score(fake.probabilities, splits)
    kernel = kid(real.features, fake.features, subsets=subsets, subset_size=subset_size, seed=seed)
    neighbours = precision_recall(real.features, fake.features) + density_coverage(real.features, fake.features)
    values = (frechet_distance(real.statistics, fake.statistics), *score, *kernel, *neighbours)
    return dict(zip(metric_names(extractor), values, strict=True))
