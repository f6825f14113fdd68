"""Few-shot linear probe and k-nearest neighbours on frozen features, as in the reference (big_vision's probe)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from umd_eqx.core.display import Chart, Display, Section
from umd_eqx.core.errors import member
from umd_eqx.core.programs import Program
from umd_eqx.core.types import FeatureKind, Report
from umd_eqx.eval.base import AbstractEvaluator, EvalContext, Evaluate, evenly_spaced, require
from umd_eqx.eval.features import RAW_PIXELS, extract, extraction_programs, flat_pixels, raw_pixels_name
from umd_eqx.eval.probes import Labels, draw_shots, nearest_neighbours, ridge_accuracies
from umd_eqx.models import AbstractModel, AbstractPatchModel

Draws = dict[int, list[Int[np.ndarray, "_"]]]
"""The indices of the drawn training images, by number of shots, one array for each seed."""


class ProbeFeatures(NamedTuple):
    """Features by kind, labels and indices of images, one row per image that can be read."""

    features: dict[str, Float[np.ndarray, "n _"]]
    labels: Int[np.ndarray, "n"]
    indices: Int[np.ndarray, "n"]


class ProbeScores(NamedTuple):
    """Top-1 accuracies in percent: of the linear probe for each draw, and of k-nearest neighbours.

    `l2` is the ridge penalty chosen for each draw, None if it was given.
    """

    top1: tuple[float, ...]
    knn: float
    l2: tuple[float, ...] | None

    @property
    def mean(self) -> float:
        """The mean accuracy of the linear probe over the draws."""
        return float(np.mean(self.top1))

    @property
    def spread(self) -> float | None:
        """The standard deviation of that accuracy over the draws (with n - 1); None for a single draw."""
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else None

    def text(self) -> str:
        """Returns the mean and the spread, such as `31.8 ± 0.4`."""
        return f"{self.mean:.1f}" if self.spread is None else f"{self.mean:.1f} ± {self.spread:.1f}"

    def scalars(self) -> dict[str, float]:
        """Returns the metrics of a run: `top1`, `top1_seed0`, `knn`, and `l2`, the geometric mean, if chosen."""
        chosen = {} if self.l2 is None else {"l2": float(np.exp(np.mean(np.log(self.l2))))}
        return {"top1": self.mean, "top1_seed0": self.top1[0], "knn": self.knn} | chosen


def score_rows(scores: Mapping[int, Mapping[str, ProbeScores]]) -> list[dict[str, Any]]:
    """Returns accuracies as plain data, with an entry for each number of shots and kind of features."""
    return [
        {
            **{"shots": shots, "features": name, "top1": each.mean, "spread": each.spread},
            **{"top1_per_seed": list(each.top1), "knn": each.knn, "l2": None if each.l2 is None else list(each.l2)},
        }
        for shots, kinds in scores.items()
        for name, each in kinds.items()
    ]


def all_drawn(draws: Draws) -> Int[np.ndarray, "n"]:
    """Returns the sorted indices of all images that are drawn for any number of shots with any seed."""
    return np.unique(np.concatenate([draw for each in draws.values() for draw in each]))


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
    def needs_labels(self) -> bool:
        """Always True: the probes are fitted to labels."""
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
            higher=r".+/(top1\w*|knn)",
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
        test_indices = self.test_indices(context)

        @functools.cache  # reads the label of each image of the pool, which would delay the start of a run
        def drawn() -> Draws:
            return self.draw(context, (self.shots,))

        @functools.cache  # the same at every evaluation
        def pixels(split: Literal["train", "test"]) -> np.ndarray:
            return flat_pixels(context, split, all_drawn(drawn()) if split == "train" else test_indices)

        def evaluate(model: AbstractModel, key: PRNGKeyArray) -> Report:
            train = self.features_of(model, context, "train", all_drawn(drawn()), key, pixels)
            test = self.features_of(model, context, "test", test_indices, key, pixels)
            scores = self.scores(train, test, drawn(), context.train.spec.num_classes)[self.shots]
            return Report({f"{name}/{k}": v for name, each in scores.items() for k, v in each.scalars().items()}, {})

        return evaluate

    def draw(self, context: EvalContext, shots: Sequence[int]) -> Draws:
        """Returns the indices of the training images that are drawn for some numbers of shots.

        Those of a smaller number are among those of a larger one. Reads the label of each image of the pool.
        """
        pool = len(context.train) if self.pool is None else min(self.pool, len(context.train))
        labels = context.train.labels(np.arange(pool))
        return {n: [draw_shots(labels, n, seed) for seed in range(self.seeds)] for n in shots}

    def test_indices(self, context: EvalContext) -> Int[np.ndarray, "m"]:
        """Returns the indices of the test images that are measured."""
        count = len(context.test) if self.test_images is None else self.test_images
        return evenly_spaced(count, len(context.test))

    def features_of(
        self,
        model: AbstractModel,
        context: EvalContext,
        split: Literal["train", "test"],
        indices: Int[np.ndarray, "n"],
        key: PRNGKeyArray,
        pixels: Callable[[Literal["train", "test"]], np.ndarray] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> ProbeFeatures:
        """Computes all `features` of some images, and their pixels if `raw_pixels`. Raises as `extract` does.

        `pixels` returns the raw pixels of these images of a split; None reads them again. `progress` is called with the
        number of images done.
        """
        found = extract(model, context, split, indices, self.time, key, progress=progress)
        features = {name: found.of(name) for name in self.features}
        if self.raw_pixels:
            raw = flat_pixels(context, split, indices) if pixels is None else pixels(split)
            features[raw_pixels_name(context.size)] = raw
        return ProbeFeatures(features, found.labels, found.indices)

    def scores(
        self, train: ProbeFeatures, test: ProbeFeatures, draws: Draws, num_classes: int
    ) -> dict[int, dict[str, ProbeScores]]:
        """Returns the accuracies by number of shots and kind of features.

        **Arguments:**

        - `train`: the features of at least the drawn images.
        - `test`: the features of the test images.
        - `draws`: the drawn images, from `draw`.
        """
        found: dict[int, dict[str, ProbeScores]] = {}
        for shots, each in draws.items():
            rows = [np.flatnonzero(np.isin(train.indices, draw)) for draw in each]
            found[shots] = {
                name: self._score(features, train.labels, test.features[name], test.labels, rows, num_classes)
                for name, features in train.features.items()
            }
        return found

    def programs(self, model: AbstractPatchModel, context: EvalContext) -> dict[str, Program]:
        """Returns the encoding and representation of one batch; the probes are fitted on the host."""
        return extraction_programs(model, context)

    def _score(
        self,
        train: Float[np.ndarray, "n d"],
        train_labels: Labels,
        test: Float[np.ndarray, "m d"],
        test_labels: Int[np.ndarray, "m"],
        draws: Sequence[Int[np.ndarray, "_"]],
        classes: int,
    ) -> ProbeScores:
        accuracies, penalties = ridge_accuracies(train, train_labels, test, test_labels, draws, classes, self.l2)
        union = np.unique(np.concatenate(draws))
        near, near_labels = (train, train_labels) if len(union) == len(train) else (train[union], train_labels[union])
        neighbours = nearest_neighbours(near, near_labels, test, self.knn)
        knn = 100.0 * float(np.mean(neighbours == test_labels))
        return ProbeScores(accuracies, knn, None if self.l2 is not None else penalties)
