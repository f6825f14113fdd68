"""Weights at URLs."""

import fsspec
import jax.numpy as jnp
import pytest

from umd_eqx.core.cards import card_of, open_card, read_weights, require_described, save_weights
from umd_eqx.core.errors import BadInput
from umd_eqx.core.exports import card_at, local_weights, writing_weights

URL = "memory://exports/umd.safetensors"
FILES = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    yield
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]


def save(value: float, url: str = URL) -> None:
    with writing_weights(url, "out") as path:
        save_weights(path, {"a": jnp.full((8,), value)}, {"format": 1})


def read(url: str = URL) -> float:
    path = local_weights(url, "run")
    weights = read_weights(path, "run")
    with open_card(path, "run", "") as card:
        require_described(path, weights, card["sha256"], "run", "")
    return float(next(iter(weights.tensors.values()))[0])


def test_weights_are_written_to_a_url_and_read_from_the_cache(monkeypatch):
    save(1.0)
    assert set(FILES.store) == {"/exports/umd.safetensors", "/exports/umd.json"}
    assert card_at(URL) == "memory://exports/umd.json"
    assert read() == 1.0
    path = local_weights(URL, "run")
    with monkeypatch.context() as patch:  # the second time, the card alone is read
        patch.setattr(type(FILES), "get_file", lambda *_: pytest.fail("fetched again"))
        assert local_weights(URL, "run") == path
        assert read() == 1.0
    path.write_bytes(b"damaged")
    assert read() == 1.0
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    save(2.0)  # the cache follows the card
    assert read() == 2.0


def test_a_path_is_left_as_it_is(tmp_path):
    assert local_weights(tmp_path, "run") == tmp_path
    with writing_weights(tmp_path / "a.safetensors", "out") as path:
        assert path == tmp_path / "a.safetensors"


def test_what_is_there_is_not_replaced():
    save(1.0)
    with pytest.raises(BadInput, match=r"out: memory://exports/umd.safetensors already exists"):
        save(2.0)
    FILES.rm("/exports/umd.safetensors")
    with pytest.raises(BadInput, match=r"out: memory://exports/umd.json already exists"):
        save(2.0)


def test_weights_without_a_card_are_no_export(monkeypatch):
    # An upload that is interrupted leaves them, because the card comes last.
    monkeypatch.setattr(type(FILES), "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(BadInput, match=r"out: memory://exports/umd.safetensors cannot be written to \(gone\)"):
        save(1.0)
    assert set(FILES.store) == {"/exports/umd.safetensors"}
    with pytest.raises(BadInput, match=r"run: there is no export at memory://exports/umd.safetensors"):
        read()


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_weights_are_refused_and_not_kept(spoil):
    save(1.0)
    FILES.pipe_file("/exports/umd.safetensors", spoil(FILES.cat_file("/exports/umd.safetensors")))
    with pytest.raises(BadInput, match="is not the file that its card describes"):
        read()
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    save(1.0)
    assert read() == 1.0


@pytest.mark.parametrize("card", [b"[", b"[]", b"{}", b"[" * 1000, b"\xff"])
def test_an_unreadable_card_is_refused(card):
    save(1.0)
    FILES.pipe_file("/exports/umd.json", card)
    with pytest.raises(BadInput, match=r"the card of memory://exports/umd.safetensors cannot be read"):
        read()


@pytest.mark.parametrize("url", ["memory://exports", "memory://exports/.safetensors", "memory://exports/a.pt"])
def test_other_urls_are_refused(url):
    with pytest.raises(BadInput, match=r"does not end in \.safetensors"):
        local_weights(url, "run")
    with pytest.raises(BadInput, match=r"does not end in \.safetensors"), writing_weights(url, "out"):
        pytest.fail("written")


def test_a_url_that_cannot_be_read_is_said_to_be(monkeypatch):
    monkeypatch.setattr(type(FILES), "cat_file", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(BadInput, match=r"memory://exports/umd.safetensors cannot be read \(no answer\)"):
        read()
    assert card_of(URL).suffix == ".json"
