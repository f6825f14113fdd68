"""All metrics of two sets, and what they are called."""

import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.eval.activations import Features
from umd_eqx.eval.distances import frechet_distance, kid, statistics_of
from umd_eqx.eval.measure import measure, metric_names
from umd_eqx.eval.scores import density_coverage, inception_score, precision_recall


def made_up(count: int, seed: int, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(count, 4)) + shift).astype(np.float32)
    return Features(statistics_of(features), features, rng.dirichlet(np.ones(3), count).astype(np.float32))


def test_every_metric_under_its_name():
    real, fake = made_up(80, 0), made_up(60, 1, 0.5)
    found = measure(real, fake, "inception", subset_size=20, subsets=7, seed=3, splits=4)
    assert found == {
        "fid": frechet_distance(real.statistics, fake.statistics),
        **dict(zip(("is", "is_std"), inception_score(fake.probabilities, 4), strict=True)),
        **dict(
            zip(("kid", "kid_std"), kid(real.features, fake.features, subsets=7, subset_size=20, seed=3), strict=True)
        ),
        **dict(zip(("precision", "recall"), precision_recall(real.features, fake.features), strict=True)),
        **dict(zip(("density", "coverage"), density_coverage(real.features, fake.features), strict=True)),
    }
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())


def test_better_images_measure_better():
    real = made_up(200, 0)
    near, far = (measure(real, made_up(200, 1, shift), "fashion") for shift in (0.1, 2.0))
    assert all(near[f"{name}_fashion"] < far[f"{name}_fashion"] for name in ("fd", "kid"))
    shares = ("precision", "recall", "density", "coverage")
    assert all(near[f"{name}_fashion"] > far[f"{name}_fashion"] for name in shares)


def test_only_inception_may_say_fid():
    assert metric_names("inception")[:2] == ("fid", "is")
    names = metric_names("fashion")
    assert (names.frechet, names.kid, names.inception_score) == ("fd_fashion", "kid_fashion", "is_fashion")
    for other in ("fashion", "inception2", "Inception"):
        assert not set(metric_names(other)) & set(metric_names("inception"))
        assert not any("fid" in name for name in metric_names(other))
    with pytest.raises(ValueError, match="has no name"):
        metric_names("")


def test_ten_images_are_enough_and_nine_are_not():
    real = made_up(80, 0)
    measure(real, made_up(10, 1), "fashion")
    with pytest.raises(BadInput, match="samples"):
        measure(real, made_up(9, 1), "fashion")
