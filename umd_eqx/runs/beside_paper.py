"""The results of runs beside the published ones."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from umd_eqx.recipes.config import Config
from umd_eqx.recipes.dump import as_flag, completed, differences, dump, flatten, identity_fields
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import IMAGENET, PRETRAIN
from umd_eqx.recipes.published import PUBLISHED, Published
from umd_eqx.report.comparison import Comparison, Group, Metric, Spread, metrics_of, spread

FULL_IMAGENET = 1_281_167
"""The number of training images of ImageNet; the published systems were trained on 99 % of them."""

MAX_DIFFERENCES = 4
"""The number of settings that are named where a run differs from the published recipe."""

_NOT_DIFFERENCES = ("seed", "start", "data.source", "data.content", "data.train_split", "data.test_split", "latent")
_LENGTH = ("optim.epochs", "optim.steps")


_PROBE = ("shots", "l2", "pool", "time")
"""The settings of a probe that its accuracy depends on."""


class Figure(NamedTuple):
    """A result of this repository.

    - `spread`: its values over the runs of a group.
    - `metric`: the name of the metric.
    - `differs`: the settings in which it was not measured as in the published recipe.
    """

    spread: Spread
    metric: Metric
    differs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the table.

    - `system`: the published system or, without one, the name of the runs.
    - `paper`: the published results, or None.
    - `probe`, `fid`, `inception_score`: the results of the runs; None where they were not measured.
    - `groups`: the groups of runs that were measured.
    - `differs`: in what they differ from the published recipe, or how long they were trained if there is none.
    """

    system: str
    paper: Published | None
    probe: Figure | None = None
    fid: Figure | None = None
    inception_score: Figure | None = None
    groups: tuple[Group, ...] = ()
    differs: tuple[str, ...] = ()


def beside_paper(comparison: Comparison, cfg_scale: float = 2.0) -> list[TableRow]:
    """Returns the rows of the table: every published system, then the runs that are none of them.

    A run is a published system if it has its objective, its network and its size of images or latents, and was trained
    on ImageNet. Several groups of runs of a system have a row each.

    **Arguments:**

    - `comparison`: groups of runs, of which the results are means over the seeds.
    - `cfg_scale`: the guidance scale of FID and Inception score, which the paper does not state.
    """
    rows: list[TableRow] = []
    taken: set[str] = set()
    for paper in PUBLISHED:
        trained = [group for group in comparison.groups if _is(group, paper, paper.preset)]
        tuned = [] if paper.finetuned is None else [g for g in comparison.groups if _is(g, paper, paper.finetuned)]
        taken |= {group.name for group in (*trained, *tuned)}
        rows += [_published(paper, *pair, cfg_scale) for pair in itertools.zip_longest(trained, tuned)] or [
            TableRow(paper.system, paper)
        ]
    return rows + [_own(group, cfg_scale) for group in comparison.groups if group.name not in taken]


def _published(paper: Published, trained: Group | None, tuned: Group | None, cfg_scale: float) -> TableRow:
    groups = [group for group in (trained, tuned) if group is not None]
    sampled = trained if paper.finetuned is None else tuned
    differs: list[str] = []
    if trained is not None:
        differs += _differences(trained, paper.preset, paper.epochs)
    if tuned is not None and paper.finetuned is not None:
        differs += [f"fine-tuning: {one}" for one in _differences(tuned, paper.finetuned, paper.finetuning_epochs)]
    standard = dump(_preset(paper.preset))["eval"]["fewshot"]
    probe_patterns = (r"fewshot/class_tokens/top1", r"probe-[^/]*/class_tokens/top1")
    probe = _figure(trained, probe_patterns, {name: standard[name] for name in _PROBE})
    sampler = _sampler(paper.finetuned or paper.preset)
    fid, inception_score = (_figure(sampled, _sampled("umd10k", cfg_scale, name), sampler) for name in ("fid", "is"))
    for name, figure in (("probe", probe), ("FID", fid), ("IS", inception_score)):
        differs += [] if figure is None else [f"{name}: {one}" for one in figure.differs]
    return TableRow(paper.system, paper, probe, fid, inception_score, tuple(groups), tuple(differs))


def _sampler(preset: str) -> dict[str, Any]:
    """The settings of the sampler of a preset's evaluation, flat; empty if it has none."""
    generation = dump(_preset(preset))["eval"].get("generation")
    return {} if generation is None else flatten(generation["sampler"], "sampler")


def _own(group: Group, cfg_scale: float) -> TableRow:
    headline = next((metric for metric in metrics_of(group.runs) if metric.headline is not None), None)
    return TableRow(
        group.name,
        None,
        None if headline is None else _figure(group, (re.escape(headline.name.removeprefix("eval/")),)),
        _figure(group, _sampled(r"[^/-]+", cfg_scale, r"(fid|fd_\w+)")),
        _figure(group, _sampled(r"[^/-]+", cfg_scale, r"is(_(?!std)\w+)?")),
        (group,),
        (_trained(group, _epochs(group)),),
    )


def _sampled(protocol: str, cfg_scale: float, metric: str) -> tuple[str, str]:
    """Patterns of a metric of samples: measured in training, or by `experiments/evaluate.py`."""
    scale = re.escape(f"cfg{cfg_scale:g}")
    return f"generation/{protocol}/{scale}/{metric}", f"{protocol}-[^/]*-{scale}-[^/]*/{metric}"


def _figure(group: Group | None, patterns: Sequence[str], standard: Mapping[str, Any] | None = None) -> Figure | None:
    """Returns the result that matches a pattern and was measured with the fewest differences from some settings.

    Among equals, it is that of the first pattern. `standard` are these settings, flat.
    """
    found = []
    for pattern, metric in itertools.product(patterns, () if group is None else metrics_of(group.runs)):
        if group is not None and re.fullmatch(f"eval/{pattern}", metric.name):
            values = spread(group.finals(metric.name))
            if values is not None:
                found.append(Figure(values, metric, _measured_otherwise(group, metric, standard or {})))
    return min(found, key=lambda figure: len(figure.differs), default=None)


def _measured_otherwise(group: Group, metric: Metric, standard: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a measurement, in training or by `experiments/evaluate.py`, that differ from `standard`."""
    evaluators = completed(group.recipe).get("eval") or {}
    measured = flatten(evaluators.get(metric.evaluation) or {})
    for run in group.runs:
        measured |= {name.removeprefix("settings."): v for name, v in run.settings.get(metric.evaluation, {}).items()}
    return tuple(
        f"{name} {measured[name]}" for name, value in standard.items() if name in measured and measured[name] != value
    )


def _is(group: Group, paper: Published, preset: str) -> bool:
    recipe, run = completed(group.recipe), group.runs[0]
    if not _on_imagenet(group) or _structure(recipe) != _structure(dump(_preset(preset))):
        return False
    starts = recipe.get("start") is not None
    if starts != (preset == paper.finetuned):
        return False
    # DiT and MaskDiT are fine-tuned in the same way: the recorded preset tells which of them a run has started from.
    alike = [other.finetuned for other in PUBLISHED if other.finetuned is not None]
    alike = [name for name in alike if _structure(dump(_preset(name))) == _structure(recipe)]
    return not starts or len(alike) == 1 or run.config.get("preset") == preset


def _preset(name: str) -> Config:
    return (PRETRAIN | FINETUNE)[name]()


def _structure(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a recipe that of a published system, whatever the length and rates of its training."""
    model, data, latent = (recipe.get(name) or {} for name in ("model", "data", "latent"))
    names = ("type", "variant", "conditioning", "labels", "prediction")
    return {
        "objective": recipe.get("objective"),
        "model": {name: model.get(name) for name in names},
        "size": data.get("size"),
        "latent": {name: latent.get(name) for name in ("factor", "channels")},
    }


def _on_imagenet(group: Group) -> bool:
    spec = group.runs[0].fact("data")
    if not isinstance(spec, Mapping):
        return "imagenet2012" in str(((group.recipe.get("data") or {}).get("source") or {}).get("name"))
    counts = (IMAGENET.num_train, FULL_IMAGENET)
    known = spec.get("name") == IMAGENET.name or spec.get("num_train") in counts
    return known and spec.get("num_classes") == IMAGENET.num_classes


def _epochs(group: Group) -> float | None:
    """How often each training image was seen, in the mean over the runs."""
    spec = group.runs[0].fact("data")
    count = spec.get("num_train") if isinstance(spec, Mapping) else None
    steps = [run.rows[-1]["step"] if run.rows else 0 for run in group.runs]
    if not isinstance(count, int) or count < 1 or group.batch_size is None:
        return None
    return sum(steps) / len(steps) * group.batch_size / count


def _trained(group: Group, epochs: float | None) -> str:
    steps = sorted({run.rows[-1]["step"] if run.rows else 0 for run in group.runs})
    shown = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    mean = "" if len(steps) == 1 else " in the mean"
    return f"{shown} steps" + ("" if epochs is None else f", {epochs:.3g} epochs{mean}")


def _differences(group: Group, preset: str, epochs: float) -> list[str]:
    found, seen = [], _epochs(group)
    if seen is None:
        found.append(f"{_trained(group, None)}, published: {epochs:g} epochs")
    elif abs(seen - epochs) > 0.005 * epochs:
        found.append(f"{seen:.3g} of {epochs:g} epochs ({seen - epochs:+.3g}, {100 * seen / epochs:.3g} %)")
    old, new = (identity_fields(flatten(completed(one))) for one in (dump(_preset(preset)), group.recipe))
    skipped = (*_NOT_DIFFERENCES, *_LENGTH)
    changed = {
        as_flag(name): values[1]
        for name, values in differences(old, new).items()
        if not any(f"{name}.".startswith(f"{skip}.") for skip in skipped)
    }
    found += [f"{name} {value}" for name, value in itertools.islice(changed.items(), MAX_DIFFERENCES)]
    if len(changed) > MAX_DIFFERENCES:
        found.append(f"{len(changed) - MAX_DIFFERENCES} more settings")
    return found
