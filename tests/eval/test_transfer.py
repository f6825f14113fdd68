"""The transfer benchmark measures what the few-shot probe measures, on each set."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from data.own_images import as_folder, drawn
from data.transfer_folder import write_sets
from eval.fakes import Fake, noise, pixels

from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.data.source_configs import TFDS
from umd_eqx.data.transfer_sets import TRANSFER_SETS, TransferSet
from umd_eqx.data.transforms import FewShotTransform
from umd_eqx.eval import EvalContext, FewShot
from umd_eqx.eval.transfer import Planned, TransferResult, measure_transfer, plan

KEY = jax.random.key(3)
PROBE = FewShot(seeds=2, knn=3, time=0.3, raw_pixels=False, l2=1.0)
SHOTS = (2, 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), ("imagenet2012", "oxford_flowers102", "imagenet_v2"))


def on_eight_pixels(train, test):
    return EvalContext(train, test, CosineTable(), 8, 16, make_mesh(jax.devices()[:1]))


def planned(asked: TransferSet, root: Path, probe: FewShot = PROBE) -> Planned:
    found = plan(asked, str(root), 3, probe, SHOTS, on_eight_pixels)
    assert isinstance(found, Planned)
    return found


@pytest.mark.parametrize("name", ["imagenet2012", "oxford_flowers102", "imagenet_v2"])
@pytest.mark.parametrize("probe", [PROBE, FewShot(seeds=2, knn=3, l2=None, test_images=5, pool=14)])
def test_the_numbers_are_those_of_the_probe_with_each_number_of_shots(root, name, probe):
    asked = TRANSFER_SETS[name]
    result = measure_transfer(Fake(), planned(asked, root, probe), probe, KEY)
    train = TFDS(asked.shots_from or name, str(root)).open("train")
    test = TFDS(f"{name}/{asked.config}" if asked.config else name, str(root)).open(asked.test)
    direct = on_eight_pixels(train, test)
    values = []
    for shots in SHOTS:
        alone = dataclasses.replace(probe, shots=shots)
        scalars = alone.build(direct)(Fake(), KEY).scalars
        ours = {f"{kind}/{k}": v for kind, each in result.scores[shots].items() for k, v in each.scalars().items()}
        assert ours == scalars
        values += [v for k, v in scalars.items() if k.endswith("top1")]
        for each in result.scores[shots].values():
            assert each.mean == np.mean(each.top1)
            assert each.spread == pytest.approx(np.std(each.top1, ddof=1))
    assert len(set(values)) > 1  # the sets are neither trivial nor impossible
    fewest = {"oxford_flowers102": {2: 2, 5: 4}}.get(name, {2: 2, 5: 5})
    if probe is PROBE:
        assert result.drawn == fewest
    else:
        assert f"shots among the first {14:,} training images" in result.notes or name == "oxford_flowers102"


def test_training_images_of_two_sets_are_represented_once(root):
    kept, done = {}, []
    first, second = (planned(TRANSFER_SETS[name], root) for name in ("imagenet2012", "imagenet_v2"))
    measure_transfer(Fake(), first, PROBE, KEY, kept=kept, progress=done.append)
    train, test = len(np.unique(np.concatenate(first.draws[5] + first.draws[2]))), 9
    assert first.images == train + test
    assert (done[0], done[-1]) == (16, train + test)  # batches of 16
    done.clear()
    again = measure_transfer(Fake(), second, PROBE, KEY, kept=kept, progress=done.append)
    assert done == [train + test]
    assert again == measure_transfer(Fake(), second, PROBE, KEY)
    assert len(kept) == 1


def test_what_cannot_be_measured_is_a_result_that_says_why(root, tmp_path):
    missing = plan(TRANSFER_SETS["dtd"], str(root), 3, PROBE, SHOTS, on_eight_pixels)
    assert isinstance(missing, TransferResult)
    said = missing.to_json()
    assert (said["set"], said["problem"]) == ("dtd", f"there is no dtd in {root}")
    assert "tfds build dtd" in said["hint"]
    for count, said in ((20, "broken images"), (10, "none of the 10 test images of torn can be read")):
        folder = tmp_path / f"{count}" / "torn"
        as_folder(folder / "train", drawn(40, 3))
        as_folder(folder / "test", drawn(count, 3, seed=1))
        broken = planned(TransferSet("torn"), folder.parent)
        for file in (folder / "test").glob("*/*.png"):
            file.write_bytes(b"")
        result = measure_transfer(Fake(), broken, PROBE, KEY)
        assert result.problem is not None
        assert said in result.problem.problem
        assert result.to_json()["hint"]


def test_a_result_says_everything_in_json(root):
    probe = FewShot(seeds=1, knn=3, features=("patches",), raw_pixels=False, l2=None)
    result = measure_transfer(Fake(), planned(TRANSFER_SETS["imagenet_v2"], root, probe), probe, KEY).to_json()
    assert {
        name: result["data"][name] for name in ("shots_from", "splits", "classes", "train_images", "test_images")
    } == {
        "shots_from": "imagenet2012",
        "splits": ["train", "test"],
        "classes": 3,
        "train_images": 24,
        "test_images": 9,
    }
    digests = [TFDS("imagenet2012", str(root)).digest(), TFDS("imagenet_v2/matched-frequency", str(root)).digest()]
    assert result["data"]["digests"] == digests
    assert [(each["shots"], each["features"], each["spread"], each["fewest_shots"]) for each in result["scores"]] == [
        (2, "patches", None, 2),
        (5, "patches", None, 5),
    ]
    for each in result["scores"]:
        assert each["top1_per_seed"] == [each["top1"]]
        assert len(each["l2"]) == 1


def test_the_size_of_the_network_is_kept_only_if_both_splits_have_it():
    own, other = noise(4, size=8), noise(4, size=9)
    for train, test, native in ((own, own, True), (own, other, False), (other, own, False)):
        assert on_eight_pixels(train, test).native == native
    (batch,) = on_eight_pixels(own, other).images("train", np.arange(4), crop="fewshot")
    enlarged = FewShotTransform(8)(own.images[1])  # as the reference does with images of any size
    np.testing.assert_array_equal(batch.image[1], enlarged)
    assert not np.array_equal(enlarged, pixels(own, 1).astype(np.float32))
