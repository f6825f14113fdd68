"""Samples that are kept in parts: the same as without, and not sampled again."""

import jax
import numpy as np
import pytest
from sampling.known import Sure

from umd_eqx.core.paths import CosineTable
from umd_eqx.core.sharding import make_mesh
from umd_eqx.sampling import DDIM, sample
from umd_eqx.sampling.parts import remove_parts, sample_in_parts

SAMPLER, KEY = DDIM(3, 1.0), jax.random.key(0)
GIVEN = (SAMPLER.denoiser(Sure(), CosineTable()), SAMPLER, np.arange(11) % 4, KEY)


def drawn(folder, progress=None):
    return sample_in_parts(
        *GIVEN, batch_size=2, mesh=make_mesh(jax.devices()[:1]), folder=folder, progress=progress, part=4
    )


@pytest.fixture(scope="module")
def whole():
    return sample(*GIVEN, batch_size=2, mesh=make_mesh(jax.devices()[:1]))


def test_parts_are_the_same_samples_and_continue_after_an_interruption(whole, tmp_path):
    folder, calls = tmp_path / "parts", []

    def interrupted(done: int, total: int) -> None:
        calls.append((done, total))
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(folder, interrupted)
    assert calls == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11)]
    assert sorted(path.name for path in folder.iterdir()) == ["00000000.npy", "00000004.npy"]
    (folder / "00000004.npy").write_bytes((folder / "00000004.npy").read_bytes()[:-9])  # cut short: sampled again
    kept = np.load(folder / "00000000.npy")
    np.save(folder / "00000000.npy", kept + np.float32(1))
    calls.clear()
    again = drawn(folder, lambda *call: calls.append(call))
    assert calls == [(4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    np.testing.assert_array_equal(again[:4], kept + np.float32(1))  # it was read, not sampled
    np.testing.assert_array_equal(again[4:], whole[4:])
    np.testing.assert_array_equal(kept, whole[:4])
    remove_parts(folder)
    assert not folder.exists()
    remove_parts(None)


def test_a_folder_that_cannot_be_written_is_done_without(whole, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "parts"):
        np.testing.assert_array_equal(drawn(folder), whole)
