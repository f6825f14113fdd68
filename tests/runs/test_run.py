"""One run from its configuration to its report."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import (
    arrays,
    assert_equal_bit_for_bit,
    on_one_device,
    rows,
    tiny,
)
from faults.tiny import (
    compilation_cache as compilation_cache,
)
from faults.tiny import (
    one_device as one_device,
)

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import CosineTable
from umd_eqx.data.source import BrokenImage, TfdsSource
from umd_eqx.eval import FewShot, Reconstruction
from umd_eqx.recipes.build import build
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.finetune import FINETUNE
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.runs.finetuning import follow, start_from
from umd_eqx.runs.pretrained import from_pretrained
from umd_eqx.runs.run import Outcome, run
from umd_eqx.runs.workspace import RUN_FORMAT, default_run_dir, nearest_preset
from umd_eqx.training import loop
from umd_eqx.training.signals import Stop

pytestmark = pytest.mark.usefixtures("one_device")

QUIET = tiny(eval={})


def measured() -> Config:
    """With every evaluator of the package; the first weights are probed, too."""
    few = FewShot(every=2, shots=2, seeds=2, test_images=24, knn=3)
    hidden = Reconstruction(every=3, images=8, pictures=4)
    return tiny(eval=tiny().eval | {"fewshot": few, "reconstruction": hidden})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with all there is to measure."""
    directory = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        outcome = run(measured(), run_dir=directory, preset="tiny", limit_steps=4)
    assert outcome == Outcome(directory, 4, None)
    assert outcome.exit_code == 0
    return directory


def test_every_evaluation_is_made_when_it_is_due_and_at_the_end(done):
    kinds = {row["step"]: {name.split("/")[1] for name in row if name.startswith("eval/")} for row in rows(done)}
    assert kinds == {
        1: set(),
        2: {"fewshot", "untrained"},
        3: {"reconstruction"},
        4: {"fewshot", "reconstruction", "denoising"},
    }
    first, last = rows(done)[1], rows(done)[3]
    # Among the numbers of the first weights there are no pixels, which have none.
    untrained = {name.removeprefix("eval/untrained/fewshot/") for name in first if "untrained" in name}
    trained = {name.removeprefix("eval/fewshot/") for name in last if name.startswith("eval/fewshot/")}
    assert untrained == {name for name in trained if "raw_pixels" not in name}
    assert {"class_tokens/top1", "patches/knn", "both/top1_seed0", "raw_pixels/top1"} <= trained


def test_what_a_run_leaves_behind_can_be_read(done):
    assert {path.name for path in done.iterdir()} == {
        *(".lock", "checkpoints", "config.json", "environment.json"),
        *("metrics.jsonl", "pictures", "report.html", "results.json"),
    }
    facts = json.loads((done / "environment.json").read_text())
    assert (facts["preset"], facts["steps"]) == ("tiny", 12)
    assert facts["parameters"] > 100_000
    assert facts["data"]["num_train"] == 60_000
    pictures = {str(path.relative_to(done / "pictures").parent) for path in (done / "pictures").rglob("*.png")}
    assert len(pictures) == 2
    page = (done / "report.html").read_text()
    assert "tiny" in page
    assert page.count("data:image/png;base64") >= 2


def test_the_learning_rate_does_not_go_by_the_limit(done):
    schedule = build(measured(), measured().data.describe()).parts.schedule
    assert [row["train/lr"] for row in rows(done)] == pytest.approx([float(schedule(step)) for step in range(4)])


def test_a_finished_run_says_so_and_is_left_as_it_is(done, capsys):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    # With another evaluation, of which nothing comes any more and nothing may be recorded.
    other = dataclasses.replace(measured(), eval=tiny().eval)
    assert run(other, run_dir=done, preset="tiny", limit_steps=3) == Outcome(done, 4, None)
    out = capsys.readouterr().out
    assert "is finished: it is at step 4 (3 requested)" in out
    assert "fewshot/class_tokens/top1" in out
    assert "report.html" in out
    del before[done / "report.html"]  # it is drawn anew, of the same numbers
    assert {path: path.read_bytes() for path in before} == before


def by_older_code(run_dir: Path) -> None:
    """Makes a run one that was begun before runs had a format."""
    path = run_dir / "config.json"
    kept = json.loads(path.read_text())
    assert kept.pop("format") == RUN_FORMAT
    path.write_text(json.dumps(kept))


def test_an_unfinished_run_of_older_code_is_refused_and_a_finished_one_is_read(tmp_path, capsys):
    directory = tmp_path / "run"
    run(QUIET, run_dir=directory, preset="umd", limit_steps=2)
    by_older_code(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="was started by an older version of this program, which draws other") as error:
        run(QUIET, run_dir=directory, preset="umd", limit_steps=4)
    assert error.value.field == "run_dir"
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in before} == before
    # It is finished where no more steps are asked for: then it is shown, sampled, exported, fine-tuned.
    capsys.readouterr()
    assert run(QUIET, run_dir=directory, preset="umd", limit_steps=2).step == 2
    assert "is finished" in capsys.readouterr().out
    assert from_pretrained(directory).step == 2
    assert follow(FINETUNE, None, *start_from(directory, "ema"))[0] == "umd-ft"
    (directory / "config.json").write_text(json.dumps(json.loads(before[directory / "config.json"]) | {"format": 99}))
    with pytest.raises(BadInput, match="was started by a newer version"):
        run(QUIET, run_dir=directory, preset="umd", limit_steps=4)


def test_measuring_does_not_change_what_is_trained(done, tmp_path):
    run(QUIET, run_dir=tmp_path / "quiet", preset="tiny", limit_steps=4)
    assert_equal_bit_for_bit(arrays(tmp_path / "quiet", QUIET), arrays(done, measured()))


def test_without_a_directory_it_is_made_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(QUIET, preset="mine", limit_steps=1).run_dir == Path("runs/mine")
    assert [row["step"] for row in rows(tmp_path / "runs/mine")] == [1]


def test_in_python_a_directory_is_named_by_what_was_changed_of_the_nearest_preset():
    for name in PRETRAIN:
        assert nearest_preset(PRETRAIN[name]()) == (name, PRETRAIN[name]())
    config = PRETRAIN["mae"]()
    changed = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=5e-4), seed=3)
    assert nearest_preset(changed)[0] == "mae"
    assert default_run_dir("mae", changed, config).name == "mae,optim.lr=0.0005,seed=3"


def test_a_bucket_is_refused_and_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="not a folder on this machine") as error:
        run(QUIET, run_dir="gs://bucket/run")
    assert error.value.field == "run_dir"
    assert list(tmp_path.iterdir()) == []


def signalled(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at_step: int, times: int = 1) -> None:
    """Lets a signal come while a step is under way."""
    real, count = loop.train_step, 0

    def step(*arguments):
        nonlocal count
        count += 1
        for _ in range(times if count == at_step else 0):
            signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_its_state_saved(tmp_path, monkeypatch, capsys, number):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signalled(monkeypatch, number, at_step=3)
    outcome = run(QUIET, run_dir=tmp_path / "run", limit_steps=6)
    assert outcome == Outcome(tmp_path / "run", 3, number.name)
    assert outcome.exit_code == 75
    out = capsys.readouterr().out
    assert f"warning: {number.name}: saving after this step" in out
    assert "at step 3 of 12, saved. The same command resumes it" in out
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert arrays(tmp_path / "run", QUIET)[".step"] == 3


def test_a_signal_in_the_last_step_stops_a_run_that_is_done(tmp_path, monkeypatch, capsys):
    signalled(monkeypatch, signal.SIGTERM, at_step=3)
    assert run(QUIET, run_dir=tmp_path / "run", limit_steps=3) == Outcome(tmp_path / "run", 3, None)
    assert "report: " in capsys.readouterr().out


def test_a_second_ctrl_c_ends_at_once_and_the_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, at_step=4, times=2)
        with pytest.raises(KeyboardInterrupt):
            run(QUIET, run_dir=tmp_path / "run")
    run(QUIET, run_dir=tmp_path / "run", limit_steps=4)
    assert "at step 2 of 12" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_stop_is_told_once_and_gives_the_handlers_back():
    before, said = signal.getsignal(signal.SIGTERM), []
    with Stop(said.append) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGTERM) == before


class TestBrokenImages:
    @pytest.fixture(autouse=True)
    def break_some(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read = TfdsSource.__getitem__

        def read_or_not(source: TfdsSource, index: int):
            if index % 7 == 0:
                raise BrokenImage(index, "cut short")
            return read(source, index)

        monkeypatch.setattr(TfdsSource, "__getitem__", read_or_not)

    def test_a_few_are_skipped_and_told(self, tmp_path, capsys):
        run(tiny(data__max_broken=1000), run_dir=tmp_path / "run", limit_steps=4)
        out = capsys.readouterr().out
        assert "train images could not be read and were skipped" in out
        assert "test images could not be read and were skipped" in out
        assert all(np.isfinite(row["train/loss"]) for row in rows(tmp_path / "run"))
        assert np.isfinite(rows(tmp_path / "run")[-1]["eval/denoising/eps/t0.50"])

    def test_too_many_end_the_run_with_the_flag(self, tmp_path):
        with pytest.raises(BadInput, match="broken images, more than 2") as error:
            run(tiny(eval={}, data__max_broken=2), run_dir=tmp_path / "run")
        assert error.value.field == "data.max_broken"


@pytest.mark.parametrize(
    ("preset", "change", "said"),
    [
        ("patch-noise", {"conditioning": "token"}, "model: AutoEncoder accepts one time for the whole image only"),
        ("mean-flow", {"prediction": "v"}, "model.prediction: the network predicts v, not average velocities. Use u"),
        ("mae", {"prediction": "v"}, "model.prediction: v cannot be learned on images without noise"),
        ("umd", {"prediction": "u"}, "model.prediction: u cannot be learned on images without noise"),
    ],
)
def test_a_network_that_its_objective_cannot_train_is_refused_before_anything_is_written(
    preset, change, said, tmp_path
):
    config = PRETRAIN[preset]()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    with pytest.raises(BadInput) as error:
        run(config, run_dir=tmp_path / "run")
    assert str(error.value).startswith(said)
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_path_than_its_objectives_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match=r"^path: CosineTable is not the rectified flow"):
        run(dataclasses.replace(PRETRAIN["mean-flow"](), path=CosineTable()), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
