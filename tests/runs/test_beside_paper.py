"""Which runs are which published system, and in what they differ from it."""

import dataclasses
from pathlib import Path

import pytest
from runs.fabricated import fabricate

from umd_eqx.core.files import save_json
from umd_eqx.core.types import DataSpec
from umd_eqx.recipes.config import Start
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import IMAGENET, PRETRAIN, umd
from umd_eqx.recipes.published import PUBLISHED
from umd_eqx.runs.beside_paper import beside_paper
from umd_eqx.runs.comparing import compare

TOP1, CLASS = "eval/fewshot/both/top1", "eval/fewshot/class_tokens/top1"
FID, IS = "eval/generation/umd10k/cfg2/fid", "eval/generation/umd10k/cfg2/is"
EPOCHS_800 = round(800 * IMAGENET.num_train / 1024 / 10) * 10


@pytest.fixture
def published(tmp_path):
    def make(name, preset, finals, *, spec=IMAGENET, start=None, steps=10, **fields):
        recipe = (PRETRAIN | FINETUNE)[preset]()
        config = dataclasses.replace(recipe, start=start, **fields)
        run = fabricate(tmp_path / name, config, {}, preset=preset, recipe=recipe, steps=10, spec=spec)
        rows = {"step": steps} | finals
        (run / "metrics.jsonl").write_text(str(rows).replace("'", '"') + "\n")
        return run

    return make


def rows_of(*paths: Path, cfg_scale: float = 2.0):
    return beside_paper(compare(paths), cfg_scale)


def test_the_facts_are_those_of_the_paper_and_every_system_has_its_presets():
    assert [(p.probe, p.fid, p.inception_score) for p in PUBLISHED] == [
        (31.8, 19.8, 46.9),
        (36.6, 26.8, 18.5),
        (25.6, 18.9, 46.9),
        (26.3, 19.0, 43.4),
        (54.4, 3.96, 212.6),
        (51.1, None, None),
        (None, 4.31, 274.5),
    ]
    for paper in PUBLISHED:
        assert PRETRAIN[paper.preset]().optim.epochs == paper.epochs
        if paper.finetuned is not None:
            assert FINETUNE[paper.finetuned]().optim.epochs == paper.finetuning_epochs


@pytest.mark.parametrize("index", range(len(PUBLISHED)))
def test_every_system_is_recognised_by_its_recipe(published, index):
    paper = PUBLISHED[index]
    paths = [published("run", paper.preset, {CLASS: 30.0, FID: 7.0})]
    if paper.finetuned is not None:
        start = Start(str(paths[0]), "ema", "digest")
        paths.append(published("tuned", paper.finetuned, {FID: 9.0, IS: 40.0}, start=start))
    rows = rows_of(*paths)
    assert [row.paper for row in rows] == list(PUBLISHED)
    row = rows[index]
    assert row.probe is not None
    assert row.probe.spread.mean == 30.0
    assert row.fid is not None
    assert row.fid.spread.mean == (7.0 if paper.finetuned is None else 9.0)
    assert [group.name for group in row.groups] == [path.name for path in paths]
    assert all(other.groups == () for other in rows if other is not row)


def test_the_length_of_training_is_compared_with_the_published_one(published):
    batches = {"steps": EPOCHS_800, "seed": 1}
    (row, *_) = rows_of(published("whole", "umd-b4-in64", {CLASS: 31.0}, **batches))
    assert row.differs == ()
    optim = dataclasses.replace(PRETRAIN["umd-b4-in64"]().optim, epochs=100.0, lr=3e-4)
    short = published("short", "umd-b4-in64", {CLASS: 31.0}, steps=EPOCHS_800 // 8, optim=optim)
    (row, *_) = rows_of(short)
    assert row.differs == ("100 of 800 epochs (-700, 12.5 %)", "optim.lr 0.0003")


def test_seeds_are_a_row_and_other_recipes_of_a_system_have_their_own(published):
    seeds = [published(f"s{i}", "dit-b4-in64", {CLASS: v}, seed=i) for i, v in enumerate((25.0, 27.0))]
    optim = dataclasses.replace(PRETRAIN["dit-b4-in64"]().optim, lr=1.0)
    found = [row for row in rows_of(*seeds, published("lr", "dit-b4-in64", {CLASS: 1.0}, optim=optim)) if row.groups]
    assert [row.system for row in found] == ["DiT-B/4 64 px"] * 2
    assert found[0].probe is not None
    assert (found[0].probe.spread.mean, found[0].probe.spread.n) == (26.0, 2)


def test_what_was_measured_otherwise_says_so_and_the_published_way_is_preferred(published):
    run = published("run", "umd-b4-in64", {TOP1: 1.0}, steps=EPOCHS_800)
    (run / "eval").mkdir()

    def add(name, figures, **settings):
        save_json(run / "eval" / f"{name}.json", [{"metrics": figures, **settings}])

    probe = {"l2": 1024.0, "pool": 100_000, "time": 0.0}
    add("probe-raw-step10-00000000", {"class_tokens/top1": 12.0}, settings=probe | {"shots": 10})
    (row, *_) = rows_of(run)
    assert row.probe is not None
    assert (row.probe.spread.mean, row.differs) == (12.0, ("probe: shots 10",))
    add("probe-ema-step10-00000001", {"class_tokens/top1": 31.0}, settings=probe | {"shots": 100})
    (row, *_) = rows_of(run)
    assert row.probe is not None
    assert (row.probe.spread.mean, row.differs) == (31.0, ())
    start = Start(str(run), "ema", "digest")
    tuned = published("tuned", "umd-b4-in64-ft", {}, start=start, steps=EPOCHS_800 // 16)
    (tuned / "eval").mkdir()
    sampler = {"name": "heun", "type": "Heun", "steps": 4}
    save_json(
        tuned / "eval" / "umd10k-heun-cfg2-ema-step10-00000002.json", [{"metrics": {"fid": 3.3}, "sampler": sampler}]
    )
    (row, *_) = rows_of(run, tuned)
    assert row.fid is not None
    assert row.fid.spread.mean == 3.3
    assert row.differs[-2:] == ("FID: sampler.type Heun", "FID: sampler.steps 4")


def test_dit_and_maskdit_are_fine_tuned_alike_and_told_apart_by_their_presets(published):
    start = Start("gone", "ema", "digest")
    found = rows_of(published("a", "maskdit-b4-in64-ft", {FID: 5.0}, start=start))
    assert [row.system for row in found if row.groups] == ["MaskDiT-B/4 64 px"]


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        (DataSpec("imagenet2012", 5, 5, 64, 64, 3, 1000), True),
        (DataSpec("mine", 1_281_167, 50_000, 64, 64, 3, 1000), True),
        (DataSpec("mine", 1_000, 50_000, 64, 64, 3, 1000), False),
        (DataSpec("imagenet2012", 1_281_167, 5, 64, 64, 3, 10), False),
    ],
)
def test_a_published_recipe_on_other_images_is_not_the_published_system(published, spec, known):
    found = rows_of(published("run", "umd-b4-in64", {CLASS: 30.0}, spec=spec))
    assert bool(found[0].groups) is known
    assert len(found) == len(PUBLISHED) + (not known)


def test_small_presets_have_rows_of_their_own_and_other_protocols_are_not_the_published_one(published, tmp_path):
    finals = {TOP1: 79.0, "eval/generation/umd10k@200/cfg2/fd_fashion": 50.0}
    found = rows_of(fabricate(tmp_path / "small", umd(), finals))
    assert [row.paper for row in found] == [*PUBLISHED, None]
    own = found[-1]
    assert (own.system, own.differs) == ("small", ("100 steps, 0.0533 epochs",))
    assert own.probe is not None
    assert own.probe.spread.mean == 79.0
    assert own.fid is not None
    assert own.fid.metric.number == "umd10k@200/cfg2/fd_fashion"
    start = Start("gone", "ema", "digest")
    few = published("few", "umd-b4-in64-ft", {"eval/generation/umd10k@500/cfg2/fid": 5.0, FID: 6.0}, start=start)
    (row, *_) = rows_of(few)
    assert row.fid is not None
    assert row.fid.spread.mean == 6.0
    assert rows_of(few, cfg_scale=4.0)[0].fid is None
