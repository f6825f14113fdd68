"""The predicted time of a program is a roofline, which can be computed by hand."""

import pytest

from umd_eqx.core.hlo import Collective, Traffic
from umd_eqx.training.prediction import CHIPS, EFFICIENCY, predict


def test_products_and_memory_overlap_and_collectives_do_not():
    chip = CHIPS["h100"]
    reduction = Collective("all-reduce", "f32", 450 * 10**9, 2, 1)  # sends 450 GB: one second
    moved = Traffic((reduction,), int(chip.memory_bandwidth * 2), True)
    found = predict(chip, 3 * EFFICIENCY * chip.peak, moved, float32=False)
    assert (found.products, found.memory, found.collectives) == pytest.approx((3, 2, 1))
    assert found.seconds == pytest.approx(4)
    assert found.limit == "products"
    tf32 = predict(chip, 3 * EFFICIENCY * chip.peak_float32, moved, float32=True, hosts=2)
    assert (tf32.products, tf32.collectives) == pytest.approx((3, 9))
    assert tf32.limit == "collectives"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 75),
        ("reduce-scatter", 75),
        ("all-reduce", 150),
        ("all-to-all", 18.75),
        ("collective-permute", 100),
    ],
)
def test_a_ring_sends_as_much_as_is_known(kind, sent):
    assert Collective(kind, "f32", 50, 4, 2).sent == sent


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e"])
def test_float32_is_computed_in_bfloat16_on_a_tpu(name):
    assert CHIPS[name].peak == CHIPS[name].peak_float32
