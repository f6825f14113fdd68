"""The row of a step whose evaluations are under way, on a disk that may have damaged it."""

import json

import pytest
from faults.tiny import compilation_cache as compilation_cache
from faults.tiny import numbers, tiny
from faults.tiny import one_device as one_device

from umd_eqx.runs.run import run
from umd_eqx.training.pending import PENDING, PendingRow

ROW = {"train/loss": 0.5, "train/skipped": 0, "train/grad_norm": float("nan")}


def test_a_row_is_kept_for_its_step_alone(tmp_path):
    pending = PendingRow(tmp_path)
    assert pending.of(4) is None
    assert not pending.is_damaged()
    pending.keep(4, ROW)
    assert repr(pending.of(4)) == repr({name: float(x) for name, x in ROW.items()})
    assert pending.of(8) is None
    assert not pending.is_damaged()
    pending.clear()
    assert pending.of(4) is None


def test_any_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    pending, path = PendingRow(tmp_path), tmp_path / PENDING
    pending.keep(4, {"train/loss": 0.5})
    whole = path.read_bytes()
    noticed = 0
    for position in range(8 * len(whole)):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        noticed += pending.is_damaged()
        assert pending.of(4) == ({} if pending.is_damaged() else {"train/loss": 0.5})
    assert noticed > 0.6 * 8 * len(whole)  # the rest is white space, or the name of the checksum


def test_a_row_of_an_older_version_has_no_checksum(tmp_path):
    (tmp_path / PENDING).write_text(json.dumps({"step": 4, "row": {"train/loss": 0.5}}))
    assert PendingRow(tmp_path).of(4) == {"train/loss": 0.5}


@pytest.mark.usefixtures("one_device")
def test_a_step_whose_row_was_damaged_is_evaluated_with_a_warning(tmp_path, capsys):
    run(tiny(), run_dir=tmp_path, limit_steps=4)
    whole, path = numbers(tmp_path), tmp_path / "metrics.jsonl"
    PendingRow(tmp_path).keep(4, {"train/loss": 0.5})
    (tmp_path / PENDING).write_bytes((tmp_path / PENDING).read_bytes()[:20])
    capsys.readouterr()
    run(tiny(), run_dir=tmp_path, limit_steps=4)  # its row had been written
    assert "warning: pending.json is damaged\n" in capsys.readouterr().out
    assert numbers(tmp_path) == whole
    assert not (tmp_path / PENDING).exists()

    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (tmp_path / PENDING).touch()
    run(tiny(), run_dir=tmp_path, limit_steps=4)
    said = "warning: pending.json is damaged: the row of step 4 will lack its training metrics\n"
    assert said in capsys.readouterr().out
    assert numbers(tmp_path)[:-1] == whole[:-1]
    evaluated = {name: x for name, x in whole[-1].items() if not name.startswith("train/")}
    assert {name: x for name, x in numbers(tmp_path)[-1].items() if "untrained" not in name} == evaluated
    assert not (tmp_path / PENDING).exists()
