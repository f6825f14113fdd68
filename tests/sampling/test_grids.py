import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling.known import Sure

from umd_eqx.core.paths import AbstractSmoothPath, CosinePath, CosineTable, LinearTable, RectifiedFlow, smooth
from umd_eqx.sampling import DDIM, EDMGrid, LogSNRGrid, ReferenceGrid, ShiftedGrid, UniformGrid
from umd_eqx.sampling.denoisers import end_times
from umd_eqx.sampling.levels import levels

TABLES = {"cosine table": CosineTable(), "linear table": LinearTable(), "short table": CosineTable(7)}
SMOOTH = {"cosine": CosinePath(), "rectified flow": RectifiedFlow(), "smooth table": smooth(LinearTable(50))}
PATHS = TABLES | SMOOTH


class Exploding(AbstractSmoothPath):
    """sigma = 80 t beside an image that stays as it is (Karras et al. 2022, with t = 1 at their sigma_max)."""

    t_min: float = eqx.field(static=True, default=1e-5)
    t_max: float = eqx.field(static=True, default=1.0)

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return 80.0 * t

    def velocity_weights(self, t):
        return jnp.ones_like(t), jnp.zeros_like(t)


GRIDS = (UniformGrid(), ReferenceGrid(), EDMGrid(), LogSNRGrid(), ShiftedGrid(), ShiftedGrid(base=8))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_grid_falls_and_stays_within_the_ends_of_its_path(path, grid):
    for steps, head in ((1, "x0"), (2, "eps"), (64, "x0")):
        low, high = end_times(path, head)
        times = grid.times(path, steps, 32, (low, high))
        assert np.all(np.diff(times.astype(np.float32)) < 0)
        assert low <= times[-1]
        assert times[0] <= high
        assert 1 <= len(times) <= steps + isinstance(grid, ReferenceGrid)


@pytest.mark.parametrize("path", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_on_a_table_times_are_its_steps(path, grid):
    steps = grid.times(path, 12, 32, end_times(path, "eps")) * path.steps
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert steps.min() >= 1


@given(st.integers(1, 1100))
def test_the_reference_goes_down_in_strides(steps):
    # As its loop has it: whole strides from 999 while above 0, then 0.
    stride = -(-1000 // steps)
    expected, index = [], 999
    while index > 0:
        expected.append(index)
        index -= stride
    times = ReferenceGrid().times(CosineTable(), steps, 64, end_times(CosineTable(), "eps"))
    assert np.rint(times * 1000).astype(int).tolist() == [index + 1 for index in [*expected, 0]]


@pytest.mark.parametrize("steps", [4, 50, 62, 100, 250, 1000])
def test_the_reference_asks_at_the_recorded_steps(steps, golden_data):
    with np.load(golden_data / "ddim.npz") as recorded:
        asked = recorded[f"evaluated_t_s{steps}"]
    times = ReferenceGrid().times(CosineTable(), steps, 64, end_times(CosineTable(), "eps"))
    assert np.rint(times * 1000 - 1).astype(int).tolist() == list(dict.fromkeys(asked.tolist()))
    sampler = DDIM(steps=steps)
    assert sampler.evaluations(sampler.denoiser(Sure(), CosineTable())) == len(times)


def sigma_to_alpha(path, times):
    alpha, sigma = levels(path, times)
    return sigma / alpha


@pytest.mark.parametrize("path", (SMOOTH | {"sigma = 80 t": Exploding()}).values(), ids=[*SMOOTH, "sigma = 80 t"])
def test_edm_levels(path):
    # Karras et al. 2022, eq. 5, from the noise levels alone.
    ratio = sigma_to_alpha(path, EDMGrid().times(path, 9, 32, end_times(path, "eps")))
    most, least = (
        float(r) for r in sigma_to_alpha(path, np.array([end_times(path, "eps")[1], end_times(path, "eps")[0]]))
    )
    assert (ratio[0], ratio[-1]) == pytest.approx((min(80, most), max(0.002, least)), rel=1e-9)
    expected = np.linspace(ratio[0] ** (1 / 7), ratio[-1] ** (1 / 7), 9) ** 7
    np.testing.assert_allclose(ratio, expected, rtol=1e-9)


def test_the_times_of_edm_are_those_of_its_formula():
    # On sigma = 80 t the noise level is the time, so that nothing is left to invert. Even points of t, 20,001 of them,
    # would be 4e-3 apart: twice the least level.
    times = EDMGrid().times(Exploding(), 18, 32, end_times(Exploding(), "x0"))
    np.testing.assert_allclose(80 * times, np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7, rtol=1e-9)


@pytest.mark.parametrize("table", [CosineTable(), LinearTable()], ids=repr)
def test_edm_levels_of_a_smoothed_table_are_exact(table):
    ratio = sigma_to_alpha(smooth(table), EDMGrid().times(smooth(table), 18, 32, end_times(smooth(table), "x0")))
    np.testing.assert_allclose(ratio, np.linspace(ratio[0] ** (1 / 7), ratio[-1] ** (1 / 7), 18) ** 7, rtol=1e-9)


@pytest.mark.parametrize("path", SMOOTH.values(), ids=SMOOTH)
def test_steps_even_in_log_snr(path):
    grid, ends = LogSNRGrid(), end_times(path, "v")
    times = grid.times(path, 12, 32, ends)
    assert len(times) == 12
    ratio = sigma_to_alpha(path, times[1:])
    # From the end of the path, which is purer noise than the largest level, by one step to that level.
    assert times[0] == ends[1]
    least = sigma_to_alpha(path, np.array(ends[:1]))[0]
    assert (ratio[0], ratio[-1]) == pytest.approx((80, max(0.002, least)), rel=1e-9)
    np.testing.assert_allclose(np.diff(np.log(ratio)), np.log(ratio[-1] / ratio[0]) / 10, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 16, 64, 300, 1000, 1100])
@pytest.mark.parametrize("table", [CosineTable(), LinearTable()], ids=repr)
def test_on_a_table_each_step_in_log_snr_is_another_one(table, steps):
    times = LogSNRGrid().times(table, steps, 32, end_times(table, "eps")) * 1000
    assert len(times) == min(steps, 1000)
    np.testing.assert_allclose(times, np.rint(times), atol=1e-9)
    assert np.all(np.diff(np.rint(times)) <= -1)
    assert times[0] == 1000
    if steps > 2:
        assert times[-1] == 1
    if steps == 16:  # few enough that even ones never round to the same
        log_snr = np.log(sigma_to_alpha(table, times[1:] / 1000))
        np.testing.assert_allclose(np.diff(log_snr), np.mean(np.diff(log_snr)), rtol=0.15)


@pytest.mark.parametrize("side", [32, 64, 256])
def test_a_shift_along_a_rectified_flow(side):
    # Esser et al. 2024, eq. 23, between the ends, which stay.
    path, s = RectifiedFlow(), side / 64
    times = ShiftedGrid().times(path, 9, side, end_times(path, "x0"))
    t = np.linspace(1.0, 1e-3, 9)
    np.testing.assert_allclose(times[1:-1], (s * t / (1 + (s - 1) * t))[1:-1], atol=1e-9)
    assert (times[0], times[-1]) == (path.t_max, path.t_min)


@pytest.mark.parametrize("path", [CosinePath(), smooth(CosineTable())], ids=["cosine", "smooth table"])
def test_a_shift_is_one_of_the_log_snr(path):
    even = UniformGrid().times(path, 9, 128, end_times(path, "x0"))[1:-1]
    shifted = ShiftedGrid().times(path, 9, 128, end_times(path, "x0"))[1:-1]
    log_snr = [2 * np.log(alpha / sigma) for alpha, sigma in (levels(path, even), levels(path, shifted))]
    np.testing.assert_allclose(log_snr[1] - log_snr[0], 2 * np.log(64 / 128), atol=1e-9)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_levels_are_those_of_the_path_also_while_something_is_traced(path):
    times = UniformGrid().times(path, 6, 32, end_times(path, "eps"))
    outside = levels(path, times)

    @jax.jit
    def inside(x):
        for ours, theirs in zip(levels(path, times), outside, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        return x

    jax.vmap(inside)(np.zeros(2))
    t = np.asarray(times, np.float32)
    np.testing.assert_allclose(outside[0], jax.vmap(path.alpha)(t), rtol=1e-4, atol=3e-7)
    np.testing.assert_allclose(outside[1], jax.vmap(path.sigma)(t), rtol=1e-4, atol=3e-7)
