"""Cards and files that are not those of a tokenizer are refused in one line."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs.tiny_tokenizers import FSQ, KL, made
from runs.tiny_tokenizers import saved as saved

from umd_eqx.core.cards import sealed
from umd_eqx.core.errors import BadInput
from umd_eqx.core.tensors import read_tensors, write_tensors
from umd_eqx.models.tokenizers.base import with_statistics
from umd_eqx.runs.tokenizers import load_tokenizer, save_tokenizer


def edited(saved, tmp_path, **fields):
    """The saved tokenizer with another card."""
    for suffix in (".safetensors", ".json"):
        shutil.copy((saved / "tokenizer").with_suffix(suffix), tmp_path / f"t{suffix}")
    card = json.loads((tmp_path / "t.json").read_text()) | fields
    (tmp_path / "t.json").write_text(json.dumps(card))
    return str(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 99}, "was written by a newer version"),
        ({"kind": "network"}, "holds no tokenizer"),
        ({"sha256": "0"}, "is not the file that its card describes"),
        ({"model": {"type": "Popen"}}, "'Popen' is not a known type"),
        ({"model": {"type": "LinearTable"}}, "t.json cannot be read"),
        ({"model": {"type": "FashionClassifierConfig"}}, "t.json cannot be read"),
        ({"channels": 10**9}, "t.json cannot be read"),
        ({"scale": 0}, "t.json cannot be read"),
        ({"shift": "nan"}, "t.json cannot be read"),
        ({"model": {"type": "KLTokenizer", "widths": [4, 9]}}, "groups do not divide"),
    ],
)
def test_cards_that_do_not_describe_a_tokenizer(saved, tmp_path, fields, message):
    with pytest.raises(BadInput, match=message) as refusal:
        load_tokenizer(edited(saved, tmp_path, **fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (KL, "shift", 0.35),
        (KL, "scale", 3.0000000000000004),
        (KL, "model", {"type": "KLTokenizer", "latent_channels": 2, "widths": [4, 8], "layers": 1, "groups": 4}),
        (KL, "step", 8),
        (FSQ, "model", {"type": "FSQTokenizer", "levels": [4, 3], "widths": [4, 4], "layers": 1, "groups": 2}),
        (FSQ, "checksum", "0" * 16),
        (FSQ, "checksum", None),
    ],
)
def test_a_card_that_was_changed_is_noticed(tmp_path, config, field, value):
    path = tmp_path / "t.safetensors"
    save_tokenizer(with_statistics(made(config), 0.25, 3.0), config, path, {"step": 7})
    card = json.loads(path.with_suffix(".json").read_text())
    assert card[field] != value
    path.with_suffix(".json").write_text(json.dumps(card | {field: value}))
    with pytest.raises(BadInput, match=r"t.json was changed after it was written") as refusal:
        load_tokenizer(str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"type": "KLTokenizer", "layers": 10**9}},
        {"model": {"type": "KLTokenizer", "groups": 0}},
        {"model": {"type": "KLTokenizer", "widths": "ab"}},
        {"model": {"type": "KLTokenizer", "widths": [4] * 99}},
        {"model": {"type": "KLTokenizer", "latent_channels": True}},
        {"model": {"type": "FSQTokenizer", "levels": [8.5, 5]}},
        {"model": {"type": "FSQTokenizer", "levels": [-3, 4]}},
        {"model": {"type": "ModelConfig"}},
        {"model": [1]},
        {"scale": 10**400},
        {"scale": "2"},
        {"scale": 1e999},
        {"shift": None},
        {"format": "2"},
        {"format": None},
    ],
    ids=json.dumps,
)
def test_a_hostile_card_is_one_line_even_with_a_checksum(saved, tmp_path, fields):
    path = Path(edited(saved, tmp_path, **fields)).with_suffix(".json")
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))
    # Where types are checked, as in tests, some are refused when they are built and not when they are looked at. Which
    # of the two meets a tuple is left to chance: beartype looks at one of its members.
    with pytest.raises(BadInput, match=r"t.json cannot be read|Type-check error|Expected type") as refusal:
        load_tokenizer(str(path.with_suffix(".safetensors")))
    assert "\n" not in str(refusal.value)


def test_a_card_of_the_first_format_is_read_without_a_checksum(saved, tmp_path):
    path = Path(edited(saved, tmp_path, format=1)).with_suffix(".json")
    card = json.loads(path.read_text())
    del card["checksum"]
    path.write_text(json.dumps(card))
    assert load_tokenizer(str(path.with_suffix(".safetensors"))).digest == load_tokenizer(str(saved)).digest
    path.write_text(json.dumps(card | {"sha256": "0"}))
    with pytest.raises(BadInput, match="is not the file that its card describes"):
        load_tokenizer(str(path.with_suffix(".safetensors")))


@pytest.mark.parametrize("what", ["lacks", "has", "shape", "finite"])
def test_files_that_do_not_fit_their_card(saved, tmp_path, what):
    path = edited(saved, tmp_path)
    tensors, _ = read_tensors(path)
    name = min(tensors)
    match what:
        case "lacks":
            del tensors[name]
        case "has":
            tensors["another"] = np.zeros(1, np.float32)
        case "shape":
            tensors[name] = np.zeros((1, 2), np.float32)
        case "finite":
            tensors[name] = np.full_like(tensors[name], np.inf)
    write_tensors(path, tensors)
    card = Path(path).with_suffix(".json")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    with pytest.raises(BadInput, match=what):
        load_tokenizer(path)


def test_what_is_no_tokenizer_at_all(saved, tmp_path):
    with pytest.raises(BadInput, match=r"tokenizer: there is no nowhere on this machine. Pass a run of train_tok"):
        load_tokenizer("nowhere")
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"preset": "kl"}')
    with pytest.raises(BadInput, match="holds a run without a finished tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps([1]))
    with pytest.raises(BadInput, match="is not a readable safetensors file"):
        load_tokenizer(str(tmp_path / "evil.safetensors"))
    shutil.copy(saved / "tokenizer.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(BadInput, match=r"has no card beside it. Put alone.json"):
        load_tokenizer(str(tmp_path / "alone.safetensors"))
