"""Which runs are one group, in what the groups differ, and what is said of them."""

import dataclasses
import json

import numpy as np
import pytest
from runs.fabricated import fabricate

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import save_json
from umd_eqx.core.types import LatentSpec
from umd_eqx.data.source_configs import TFDS, Images
from umd_eqx.recipes.config import Start
from umd_eqx.recipes.pretrain import mae, umd
from umd_eqx.report.comparison import UNSET, best_groups, metrics_of, spread
from umd_eqx.runs.comparing import compare

TOP1 = "eval/fewshot/both/top1"


def changed(config=None, **fields):
    """`umd`, or another recipe, with other values: `changed(optim__lr=1.0, seed=1)`."""
    config = config or umd()
    for name, value in fields.items():
        room, _, field = name.rpartition("__")
        part = dataclasses.replace(getattr(config, room), **{field: value}) if room else value
        config = dataclasses.replace(config, **{room or field: part})
    return config


def test_runs_that_differ_only_in_the_seed_are_a_group_and_its_spread_is_that_of_numpy(tmp_path):
    values = [79.0, 80.5, 78.25]
    seeds = [fabricate(tmp_path / f"umd,seed={i}", changed(seed=i), {TOP1: v}) for i, v in enumerate(values)]
    faster = fabricate(tmp_path / "fast", changed(optim__lr=5e-3), {TOP1: 80.0})
    found = compare([seeds[0], faster, *seeds[1:]])
    assert [group.name for group in found.groups] == ["umd", "fast"]
    group = found.groups[0]
    assert group.seeds == (0, 1, 2)
    mean, std, n = spread(group.finals(TOP1)) or (None,) * 3
    assert (mean, std, n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 3)
    assert [one.settings for one in found.groups] == [{"optim.lr": 1e-3}, {"optim.lr": 5e-3}]
    assert found.notes == ()
    (metric,) = (metric for metric in metrics_of(found.runs) if metric.name == TOP1)
    assert best_groups(found, metric) == {"fast"}


def test_what_does_not_affect_weights_or_measurements_is_not_a_difference(tmp_path):
    other = changed(seed=1, log__every=7, checkpoint__every=9, data__workers=5, data__eval_batch_size=8, max_skipped=3)
    probe = dataclasses.replace(umd().eval["fewshot"], every=3)
    other = dataclasses.replace(other, eval=umd().eval | {"fewshot": probe})
    found = compare([fabricate(tmp_path / "a", umd(), {TOP1: 1.0}), fabricate(tmp_path / "b", other, {TOP1: 2.0})])
    assert [group.labels for group in found.groups] == [("a", "b")]


def test_evaluations_with_other_settings_are_not_averaged(tmp_path):
    probe = dataclasses.replace(umd().eval["fewshot"], shots=10)
    other = dataclasses.replace(umd(), eval=umd().eval | {"fewshot": probe})
    found = compare([fabricate(tmp_path / "a", umd(), {TOP1: 1.0}), fabricate(tmp_path / "b", other, {TOP1: 2.0})])
    assert [group.settings for group in found.groups] == [{"eval.fewshot.shots": 100}, {"eval.fewshot.shots": 10}]
    assert found.notes == ("evaluations had different settings: eval.fewshot.shots",)


def test_images_are_compared_by_their_content_and_not_by_their_name_or_place(tmp_path):
    here = changed(data__source=TFDS("fashion_mnist", "/a"), data__content="11112222aaaa")
    same = changed(data__source=Images("/b", title="clothes"), data__content="11112222aaaa", seed=1)
    other = changed(data__source=TFDS("fashion_mnist", "/a"), data__content="33334444aaaa")
    paths = [fabricate(tmp_path / n, c, {TOP1: 1.0}) for n, c in (("here", here), ("same", same), ("other", other))]
    found = compare(paths)
    assert [group.labels for group in found.groups] == [("here", "same"), ("other",)]
    assert [group.settings for group in found.groups] == [
        {"data": "fashion_mnist (11112222)"},
        {"data": "fashion_mnist (33334444)"},
    ]
    (note,) = found.notes
    assert "here: fashion_mnist (11112222); other: fashion_mnist (33334444)" in note


def test_runs_that_started_from_seeds_of_one_recipe_are_a_group(tmp_path):
    starts = [fabricate(tmp_path / f"umd{i}", changed(seed=i), {}) for i in range(2)]
    third = fabricate(tmp_path / "mae", mae(), {}, preset="mae")
    paths = []
    for i, source in enumerate([*starts, third, tmp_path / "gone"]):
        config = changed(seed=i, start=Start(str(source), "ema", f"digest {i}"))
        paths.append(fabricate(tmp_path / f"ft{i}", config, {TOP1: 1.0}))
    found = compare(paths)
    assert [group.labels for group in found.groups] == [("ft0", "ft1"), ("ft2",), ("ft3",)]
    assert found.groups[0].settings["start.optim.steps"] == 2000
    assert found.groups[1].settings["start.optim.steps"] == 4000
    assert found.groups[2].settings["start.digest"] == "digest 3"


def test_a_part_that_only_some_recipes_have_is_shown_by_its_type(tmp_path):
    latents = fabricate(tmp_path / "latents", changed(latent=LatentSpec(4, 4)), {TOP1: 1.0})
    pixels = fabricate(tmp_path / "pixels", umd(), {TOP1: 1.0})
    for paths in ((latents, pixels), (pixels, latents)):
        shown = {group.name: group.settings for group in compare(paths).groups}
        assert shown["latents"]["latent"] == "LatentSpec"
        assert shown["pixels"]["latent"] is None
        assert (shown["latents"]["latent.factor"], shown["pixels"]["latent.factor"]) == (4, UNSET)


def test_what_should_be_known_is_said(tmp_path):
    running = fabricate(tmp_path / "running", umd(), {}, until=40)
    old = fabricate(tmp_path / "old", changed(optim__lr=1.0), {TOP1: 1.0})
    kept = json.loads((old / "config.json").read_text())
    data = kept["config"]["data"]
    kept["config"]["data"] = {k: v for k, v in data.items() if k not in ("source", "content", "max_broken")} | {
        "name": "fashion_mnist",
        "dir": None,
    }  # as the first version wrote it
    save_json(old / "config.json", {name: value for name, value in kept.items() if name != "format"})
    empty = tmp_path / "empty"
    empty.mkdir()
    found = compare([running, old, running, empty])
    assert found.notes == (
        f"{running} was given more than once, and is shown once",
        f"{empty} is not a run, and is left out",
        "running is not finished: it is at step 40 of 100",
        "running has no evaluation yet",
        "old was trained by another version (format 1), which draws other batches",
    )
    assert [group.settings for group in found.groups] == [{"optim.lr": 1e-3}, {"optim.lr": 1.0}]


def test_the_same_seed_twice_is_said_and_names_are_unique(tmp_path):
    paths = [fabricate(tmp_path / room / "umd", umd(), {TOP1: 1.0}) for room in ("a", "b")]
    paths.append(fabricate(tmp_path / "c" / "umd", changed(optim__lr=1.0), {TOP1: 1.0}))
    found = compare(paths)
    assert [group.labels for group in found.groups] == [(str(paths[0]), str(paths[1])), (str(paths[2]),)]
    assert [group.name for group in found.groups] == ["umd", str(paths[2])]
    assert found.notes == ("umd: several runs have the same recipe and the seed 0",)


def test_a_typo_is_told_with_the_nearest_run(tmp_path):
    fabricate(tmp_path / "runs" / "umd", umd(), {})
    (tmp_path / "runs" / "umx").mkdir()  # nearer, but not a run
    for path in (tmp_path / "runs" / "umdx", tmp_path / "runs" / "umdx" / "deeper"):
        with pytest.raises(BadInput, match=rf"^runs: there is no {path}\. Did you mean {tmp_path}/runs/umd\?$"):
            compare([path])
    with pytest.raises(BadInput, match="is a run"):
        compare([tmp_path / "runs" / "umx"])
    with pytest.raises(BadInput, match="no RUN was given"):
        compare([])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": 3}'])
def test_a_damaged_recipe_is_named(tmp_path, content):
    run = fabricate(tmp_path / "umd", umd(), {})
    (run / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config\.json cannot be read"):
        compare([run])


def test_what_evaluate_measured_is_compared_where_its_settings_are_the_same(tmp_path):
    paths = []
    for seed, steps in ((0, 32), (1, 32), (2, 16)):
        run = fabricate(tmp_path / f"s{seed}", changed(seed=seed), {TOP1: 1.0})
        result = {"metrics": {"fid": 5.0 + seed}, "extra": {"recognised": 0.5}, "sampler": {"steps": steps}}
        (run / "eval").mkdir()
        save_json(run / "eval" / f"umd10k-ddim-cfg2-ema-step100-{seed:08x}.json", [result | {"weights": str(seed)}])
        paths.append(run)
    (group,) = compare(paths).groups
    assert group.finals("eval/umd10k-ddim-cfg2-ema[sampler.steps=32]/fid") == [5.0, 6.0]
    assert group.finals("eval/umd10k-ddim-cfg2-ema[sampler.steps=16]/fid") == [7.0]
    (alone,) = compare(paths[:2]).groups
    assert alone.finals("eval/umd10k-ddim-cfg2-ema/fid") == [5.0, 6.0]
    directions = {metric.number: metric.better for metric in metrics_of(alone.runs) if "umd10k" in metric.name}
    assert directions == {"fid": "lower", "recognised": "higher"}


def test_results_of_evaluate_are_grouped_over_seeds(tmp_path):
    paths = []
    for seed in (0, 1):
        run = fabricate(tmp_path / f"s{seed}", changed(seed=seed), {TOP1: 1.0})
        about = {"recipe": {"seed": seed}, "seed": seed, "weights": str(seed), "seconds": 1.0 + seed}
        probe = {"metrics": {"both/top1": 60.0 + seed}, "scores": [{"top1": seed}], "settings": {"shots": 10}}
        table = {"title": f"T{seed}", "columns": ["a"], "rows": [["b"]], "notes": []}
        sets = [{"set": "digits", "scores": seed}]
        transfer = {"metrics": {"digits/10-shot/both": 90.0 + seed}, "results": sets, "settings": {"l2": 1.0}}
        layers = {"metrics": {"encoder 1/t=0/top1": 5.0}, "top1": [[seed]], "heatmap": {"values": [[seed]]}}
        (run / "eval").mkdir()
        for name, result in (
            ("probe-raw", probe),
            ("transfer-raw", transfer | {"table": table}),
            ("layers-raw", layers),
        ):
            save_json(run / "eval" / f"{name}-step100-{seed:08x}.json", [about | result])
        paths.append(run)
    (group,) = compare(paths).groups
    assert group.finals("eval/probe-raw/both/top1") == [60.0, 61.0]
    assert group.finals("eval/transfer-raw/digits/10-shot/both") == [90.0, 91.0]
    found = {metric.name: metric for metric in metrics_of(group.runs)}
    accuracy = found["eval/transfer-raw/digits/10-shot/both"]
    assert (accuracy.better, accuracy.percent, accuracy.main) == ("higher", True, True)
    assert not any("layers" in name for name in found)
