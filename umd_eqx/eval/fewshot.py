"""Few-shot linear probe and k-nearest neighbours on frozen features, as in the reference (big_vision's probe)."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.errors import member
from umd_eqx.core.programs import Program
from umd_eqx.core.types import Report
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, evenly_spaced, require
from umd_eqx.eval.features import RAW_PIXELS, FeatureKind, extract, extraction_programs, flat_pixels, raw_pixels_name
from umd_eqx.models import AbstractModel, AbstractPatchModel

ROWS = 1024
"""Number of test images that are whitened, or compared with all training images, at once. With 100,000 training images
this takes 1.2 GB; all 50,000 test images of ImageNet at once would take 60 GB."""

BIAS_FEATURE = 100.0
"""The constant feature. It is large, which makes the effect of the ridge penalty on the bias negligible."""

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-4, 9))
"""The candidate ridge penalties, 0.01 to 10,000, if `FewShot.l2` is None."""

Labels = Int[np.ndarray, "n"]


class RidgeProbe(NamedTuple):
    """A linear classifier of whitened features. The last row of `weights` is that of the constant feature."""

    mean: Float[np.ndarray, "d"]
    std: Float[np.ndarray, "d"]
    weights: Float[np.ndarray, "d_plus_1 classes"]

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n"]:
        """Returns the class with the largest score for each row."""
        parts = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
        scores = [_whitened(part, self.mean, self.std) @ self.weights for part in parts]
        return np.argmax(np.concatenate(scores), axis=1)


def draw_shots(labels: Labels, shots: int, seed: int) -> Int[np.ndarray, "drawn"]:
    """Returns the indices of up to `shots` random examples of each class, with the classes in order.

    All examples are taken of a class with fewer, as in the reference.
    """
    rng = np.random.default_rng(seed)
    classes = range(int(labels.max()) + 1)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes])


def ridge_probe(features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int, l2: float = 1024.0) -> RidgeProbe:
    """Fits ridge regression to targets +-1, in closed form and float64: W = (X'X + l2 I)^-1 X'Y.

    X is whitened by its own mean and standard deviation (+ 1e-5), with a constant feature of 100 appended. With fewer
    examples than features, the same solution is computed from X X'.
    """
    mean, std = _moments(features)
    x, y = _whitened(features, mean, std), _targets(labels, num_classes)
    if x.shape[0] < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(x.shape[0]), y)
    else:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return RidgeProbe(mean, std, weights)


def leave_one_out(
    features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int, l2: float
) -> Float[np.ndarray, "n classes"]:
    """Returns the leave-one-out scores of `ridge_probe` for every image, from a single fit.

    y - y_without = (y - y_fitted) / (1 - h), where h is the diagonal of X (X'X + l2 I)^-1 X' (Allen 1974, PRESS). The
    whitening is that of all images.
    """
    return _leave_one_out(*_spectrum(features), _targets(labels, num_classes), l2)


def choose_l2(features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int) -> float:
    """Returns the penalty in `STRENGTHS` with the best leave-one-out accuracy, the largest one in case of ties."""
    projections, squares = _spectrum(features)
    targets = _targets(labels, num_classes)

    def correct(l2: float) -> tuple[int, float]:
        scores = _leave_one_out(projections, squares, targets, l2)
        return int(np.sum(scores.argmax(axis=1) == labels)), l2

    return max(STRENGTHS, key=correct)


def nearest_neighbours(
    train: Float[np.ndarray, "n d"], labels: Labels, test: Float[np.ndarray, "m d"], k: int, *, rows: int = ROWS
) -> Int[np.ndarray, "m"]:
    """Returns the majority class among the k training features with the largest cosine similarity.

    Ties go to the lowest class. `rows` test features are compared with all n at once, which affects memory only.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    against = -unit(train).T  # the nearest come first
    predicted = np.empty(len(test), np.int64)
    for start in range(0, len(test), rows):
        some = slice(start, start + rows)
        nearest = labels[np.argpartition(unit(test[some]) @ against, min(k, len(labels)) - 1, axis=1)[:, :k]]
        predicted[some] = [np.bincount(votes).argmax() for votes in nearest]
    return predicted


@dataclasses.dataclass(frozen=True)
class FewShot(AbstractEvaluator):
    """Few-shot linear probe and k-nearest neighbours of the representation: top-1 test accuracy in percent.

    For each of `features`, the report has `<features>/top1`, the mean over the draws of the training images,
    `<features>/top1_seed0`, for the reference's single draw, and `<features>/knn`, k-nearest neighbours among all drawn
    images. `raw_pixels` are the images themselves; images larger than 32 px are averaged over boxes to 32 x 32, as
    `raw_pixels_32px`.
    """

    every: int = 10_000
    """Steps between two evaluations."""
    weights: Literal["raw", "ema"] = "raw"
    """Which weights to evaluate: raw, or their moving average if the run has one."""
    shots: int = 100
    """Number of training images per class."""
    seeds: int = 3
    """Number of random draws of the training images."""
    l2: float | None = 1024.0
    """Ridge penalty; the reference uses 1024 for its 100,000 images. None: chosen for each kind of features by
    leave-one-out accuracy on the training images of a draw."""
    features: tuple[FeatureKind, ...] = ("class_tokens", "patches", "both")
    """Features to probe: the mean of the class tokens (as in the reference), the mean of the patches, or their
    concatenation."""
    time: float = 0.0
    """Noise level of the images, from 0 (clean) to 1. The reference uses 0.051, its step 51, for systems with r = 0."""
    pool: int | None = 100_000
    """Number of training images, from the first, that shots are drawn from (as in the reference). None: all."""
    test_images: int | None = None
    """Number of test images, evenly spaced over the split. None: all."""
    knn: int = 20
    """Number of neighbours of the k-nearest-neighbour classifier."""
    raw_pixels: bool = True
    """Whether to also probe the pixels themselves (averaged to at most 32 x 32), as a baseline."""
    headline: FeatureKind | None = None
    """Which of `features` is the headline of the report. None: the first. Choosing the best on the test images would
    bias the result."""

    @property
    def needs_representation(self) -> bool:
        """Always True: the representation is probed."""
        return True

    @property
    def measures_untrained(self) -> bool:
        """Always True: the initial weights are probed too, as a baseline."""
        return True

    def display(self, data: str | None = None) -> Display:
        """Returns charts of the accuracies against the step; the headline is that of the configured features."""
        charts = (
            Chart("fewshot", "Few-shot linear probe, top-1", r"(?P<line>.+)/top1", "percent", first_as_level=True),
            Chart("knn", "Nearest neighbours, top-1", r"(?P<line>.+)/knn", "percent", first_as_level=True),
        )
        headline_note = (
            "The headline is the accuracy of the configured kind of features; the others are for comparison, because "
            "choosing the best of them on the test images would bias the result."
        )
        section = Section(
            "Probe accuracy",
            charts,
            leading=True,
            note="Dotted: the same features before training (step 0).",
            headline_note=headline_note,
            baseline_note="Dashed: a probe of the raw pixels.",
        )
        return Display(
            (section,),
            title="few-shot",
            headline=r"(?P<line>[^/]+)/top1",
            headline_text="top-1, {line}",
            preferred=(*([] if self.headline is None else [self.headline]), *self.features),
            baseline=f"{RAW_PIXELS}.*",
            percent=r".+/(top1\w*|knn)",
        )

    def is_baseline(self, name: str) -> bool:
        """Whether `name` is an accuracy of the raw pixels."""
        return name.startswith(RAW_PIXELS)

    def validate(self, num_patches: int | None = None, field: str = "eval.fewshot") -> None:
        """Raises `BadInput` for counts below 1, no features, a time outside [0, 1], and a penalty of 0 or below."""
        counts = {"shots": self.shots, "seeds": self.seeds, "knn": self.knn}
        counts |= {"pool": self.pool, "test_images": self.test_images}
        require(self, field, {name: n is None or n >= 1 for name, n in counts.items()}, "Use 1 or more")
        require(self, field, {"features": len(self.features) > 0}, "Name one or more of class_tokens, patches, both")
        among = self.headline is None or self.headline in self.features
        require(self, field, {"headline": among}, f"Choose among `{member(field, 'features')}`")
        require(self, field, {"time": 0 <= self.time <= 1}, "Use a time of the path, 0 (clean) to 1 (noise)")
        require(self, field, {"l2": self.l2 is None or self.l2 > 0}, "Use a positive number; the reference uses 1024")

    def build(self, context: EvalContext) -> Evaluate:
        """Returns the evaluation function, which draws the training images when it is first called."""
        self.validate()
        test_count = len(context.test) if self.test_images is None else self.test_images
        test_indices = evenly_spaced(test_count, len(context.test))

        @functools.cache  # reads the label of each image of the pool, which would delay the start of a run
        def drawn() -> tuple[list[np.ndarray], np.ndarray]:
            pool = len(context.train) if self.pool is None else min(self.pool, len(context.train))
            labels = context.train.labels(np.arange(pool))
            draws = [draw_shots(labels, self.shots, seed) for seed in range(self.seeds)]
            return draws, np.unique(np.concatenate(draws))

        @functools.cache  # the same at every evaluation
        def pixels() -> tuple[np.ndarray, np.ndarray]:
            _, train_indices = drawn()
            return flat_pixels(context, "train", train_indices), flat_pixels(context, "test", test_indices)

        def evaluate(model: AbstractModel, key: PRNGKeyArray) -> Report:
            draws, train_indices = drawn()
            train = extract(model, context, "train", train_indices, self.time, key)
            test = extract(model, context, "test", test_indices, self.time, key)
            pairs = {name: (train.of(name), test.of(name)) for name in self.features}
            if self.raw_pixels:
                pairs[raw_pixels_name(context.size)] = pixels()
            rows = [np.flatnonzero(np.isin(train.indices, draw)) for draw in draws]
            score = functools.partial(self._score, train.labels, test.labels, rows, context.train.spec.num_classes)
            scores = {name: score(*pair) for name, pair in pairs.items()}
            return Report({f"{name}/{k}": v for name, each in scores.items() for k, v in each.items()}, {})

        return evaluate

    def programs(self, model: AbstractPatchModel, context: EvalContext) -> dict[str, Program]:
        """Returns the encoding and representation of one batch; the probes are fitted on the host."""
        return extraction_programs(model, context)

    def _score(
        self,
        train_labels: Labels,
        test_labels: Int[np.ndarray, "m"],
        draws: list[Int[np.ndarray, "_"]],
        classes: int,
        train: Float[np.ndarray, "n d"],
        test: Float[np.ndarray, "m d"],
    ) -> dict[str, float]:
        accuracies, strengths = [], []
        for rows in draws:
            features, labels = train[rows], train_labels[rows]
            l2 = choose_l2(features, labels, classes) if self.l2 is None else self.l2
            predicted = ridge_probe(features, labels, classes, l2).predict(test)
            accuracies.append(100.0 * float(np.mean(predicted == test_labels)))
            strengths.append(l2)
        neighbours = nearest_neighbours(train, train_labels, test, self.knn)
        scores = {
            "top1": float(np.mean(accuracies)),
            "top1_seed0": accuracies[0],
            "knn": 100.0 * float(np.mean(neighbours == test_labels)),
        }
        return scores if self.l2 is not None else scores | {"l2": float(np.exp(np.mean(np.log(strengths))))}


def _whitened(features: Float[np.ndarray, "n d"], mean: np.ndarray, std: np.ndarray) -> Float[np.ndarray, "n d_plus_1"]:
    x = np.empty((len(features), features.shape[1] + 1))  # in place: there may be gigabytes of them
    np.subtract(features, mean, out=x[:, :-1])
    x[:, :-1] /= std
    x[:, -1] = BIAS_FEATURE
    return x


def _moments(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    return features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-5


def _targets(labels: Labels, num_classes: int) -> Float[np.ndarray, "n classes"]:
    return 2.0 * np.eye(num_classes)[labels] - 1.0


def _spectrum(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "rank"]]:
    # Projections of the images on the principal directions of the whitened features, and the squared singular values.
    x = _whitened(features, *_moments(features))
    if x.shape[0] < x.shape[1]:
        squares, left = np.linalg.eigh(x @ x.T)
        squares = np.maximum(squares, 0.0)
        return left * np.sqrt(squares), squares
    squares, right = np.linalg.eigh(x.T @ x)
    return x @ right, np.maximum(squares, 0.0)


def _leave_one_out(
    projections: Float[np.ndarray, "n rank"],
    squares: Float[np.ndarray, "rank"],
    y: Float[np.ndarray, "n classes"],
    l2: float,
) -> Float[np.ndarray, "n classes"]:
    weighted = projections / (squares + l2)
    fitted = weighted @ (projections.T @ y)
    leverage = np.einsum("nr,nr->n", weighted, projections)[:, None]
    return y - (y - fitted) / (1.0 - leverage)
