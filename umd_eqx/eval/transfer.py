"""The transfer benchmark: few-shot probes of one network on several data sets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.data.source import DataSource
from umd_eqx.data.transfer_sets import OpenedSet, TransferSet, open_set
from umd_eqx.eval.base import EvalContext
from umd_eqx.eval.fewshot import Draws, FewShot, ProbeFeatures, ProbeScores, all_drawn, score_rows
from umd_eqx.models import AbstractModel

MakeContext = Callable[[DataSource, DataSource], EvalContext]
"""Returns the context of evaluations on training and test images."""

Kept = dict[tuple[Any, ...], ProbeFeatures]
"""Features of drawn training images that several sets share."""


@dataclasses.dataclass(frozen=True)
class TransferResult:
    """What was measured on one data set, or why nothing was.

    - `name`: the data set.
    - `scores`: the accuracies by number of shots and kind of features; empty if nothing was measured.
    - `drawn`: for each number of shots, the fewest images of a class that were drawn, 0 if a class has none: a class
        with fewer images than shots is used whole, as in the reference.
    - `data`: the splits, numbers of images and classes, and fingerprints of the data.
    - `notes`: how the data differ from the published set.
    - `problem`: why nothing was measured, and how to get the data; None if it was.
    """

    name: str
    scores: dict[int, dict[str, ProbeScores]] = dataclasses.field(default_factory=dict)
    drawn: dict[int, int] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: BadInput | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the result for `json.dumps`, with a list of one entry for each number of shots and features."""
        if self.problem is not None:
            return {"set": self.name, "problem": self.problem.problem, "hint": self.problem.hint}
        scores = [each | {"fewest_shots": self.drawn[each["shots"]]} for each in score_rows(self.scores)]
        return {"set": self.name, "data": self.data, "scores": scores, "notes": list(self.notes)}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A data set that is about to be measured: its images, and which of them are used."""

    set: TransferSet
    opened: OpenedSet
    context: EvalContext
    draws: Draws
    test_indices: Int[np.ndarray, "m"]

    @property
    def images(self) -> int:
        """The number of images whose features are needed."""
        return len(all_drawn(self.draws)) + len(self.test_indices)


def plan(
    each: TransferSet,
    root: str,
    channels: int,
    probe: FewShot,
    shots: Sequence[int],
    context: MakeContext,
    *,
    max_broken: int | None = None,
) -> Planned | TransferResult:
    """Opens a data set and draws its training images, without decoding any.

    **Arguments:**

    - `each`, `root`: the data set, and the folder that contains it.
    - `channels`: the channels of the images that the network was trained on, 1 or 3.
    - `probe`: the settings of the probe; its `shots` is not used.
    - `shots`: the numbers of training images per class.
    - `context`: makes the context from two splits.
    - `max_broken`: how many images of each split may be broken, as for `CountBroken`.

    **Returns:** what is to be measured, or a result with a `problem` if the data are missing or cannot be read.
    """
    try:
        opened = open_set(each, root, channels, max_broken)
        made = context(opened.train, opened.test)
        draws = probe.draw(made, shots)
        if not all(len(draw) for some in draws.values() for draw in some):
            problem = f"no training image of {each.name} has a readable label"
            raise BadInput("data.source.dir", problem, "Prepare the data set again")
        return Planned(each, opened, made, draws, probe.test_indices(made))
    except BadInput as error:
        return TransferResult(each.name, problem=error)


def measure_transfer(
    model: AbstractModel,
    planned: Planned,
    probe: FewShot,
    key: PRNGKeyArray,
    *,
    kept: Kept | None = None,
    progress: Callable[[int], None] | None = None,
) -> TransferResult:
    """Measures the probe on a data set, for all numbers of shots.

    The numbers are those of `probe` on this set with each number of shots in turn; the features of an image are
    computed once.

    **Arguments:**

    - `model`: the network, an `AbstractPatchModel`.
    - `planned`: the data set, from `plan`.
    - `probe`: the settings that it was planned with.
    - `key`: the key of the noise, if `probe.time` is not 0.
    - `kept`: features of the training images of earlier sets, reused and extended. None: nothing is shared.
    - `progress`: called with the number of images whose features have been computed.

    **Returns:** the result, with a `problem` if too many images cannot be read.
    """
    opened, context, draws = planned.opened, planned.context, planned.draws
    shared = (opened.origin, opened.splits[0], opened.digests[0], opened.renumbered, context.native)
    count = len(all_drawn(draws))
    try:
        train = None if kept is None or shared not in kept else kept[shared]
        if train is None:
            train = probe.features_of(model, context, "train", all_drawn(draws), key, progress=progress)
        if kept is not None:
            kept[shared] = train
        further = None if progress is None else lambda done: progress(count + done)
        test = probe.features_of(model, context, "test", planned.test_indices, key, progress=further)
        if not len(test.labels):
            problem = f"none of the {len(planned.test_indices)} test images of {planned.set.name} can be read"
            raise BadInput("data.source.dir", problem, "Repair the data")
        classes = context.train.spec.num_classes
        scores = probe.scores(train, test, draws, classes)
    except BadInput as error:
        return TransferResult(planned.set.name, problem=error)
    drawn = {shots: _fewest(train, some[0], classes) for shots, some in draws.items()}
    data = {
        **{"shots_from": opened.origin, "splits": list(opened.splits), "classes": classes},
        **{"train_images": len(context.train), "test_images": len(planned.test_indices)},
        "digests": list(opened.digests),
    }
    notes = opened.notes
    if probe.pool is not None and probe.pool < len(context.train):
        notes = (*notes, f"shots among the first {probe.pool:,} training images")
    return TransferResult(planned.set.name, scores, drawn, data, notes)


def _fewest(train: ProbeFeatures, draw: Int[np.ndarray, "_"], classes: int) -> int:
    """Returns the smallest number of drawn images of a class."""
    return int(np.bincount(train.labels[np.isin(train.indices, draw)], minlength=classes).min())
