"""What a program moves is read from the text of its HLO: kept programs of known traffic, and lines by hand."""

from pathlib import Path

import pytest

from umd_eqx.core.hlo import Collective, traffic

KEPT = Path(__file__).parent / "kept"
LAYERS = 12 * 256 * 256
"""The number of parameters of both kept programs: twelve layers, whose kernels are divided over eight devices."""


@pytest.mark.parametrize(("chip", "width", "reduction"), [("cpu", 4, "all-reduce"), ("v5e", 2, "reduce-scatter")])
def test_a_scan_over_divided_layers_gathers_them_twice_and_reduces_once(chip, width, reduction):
    # The TPU's products are of bfloat16 by default, so that XLA gathers rounded weights; gradients stay float32.
    found = traffic((KEPT / f"fsdp_{chip}.hlo").read_text())
    assert found.exact
    assert {one.count for one in found.collectives} == {12}
    assert {one.group for one in found.collectives} == {8}
    assert found.bytes("all-gather") == 2 * LAYERS * width
    assert found.bytes(reduction) == LAYERS * 4
    assert found.bytes() == found.bytes("all-gather") + found.bytes(reduction)


def module(*entry: str, more: str = "", devices: int = 8) -> str:
    lines = "\n  ".join(entry)
    head = f"HloModule m, num_partitions={devices}\n\n{more}\n\nENTRY %main (p: f32[16,32]) -> f32[16,32] {{"
    return f"{head}\n  {lines}\n}}\n"


PARAMETER = "%p = f32[16,32]{1,0} parameter(0)"


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 8),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}", 2),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(3,2,1,0,7,6,5,4) {'a','b'}", 8),
    ],
)
def test_groups_are_read_in_every_notation(groups, size):
    (one,) = traffic(
        module(PARAMETER, f"ROOT %r = f32[16,32]{{1,0}} all-reduce(%p), {groups}, to_apply=%add")
    ).collectives
    assert one == Collective("all-reduce", "f32", 16 * 32 * 4, size, 1)
    assert one.sent == 2 * 16 * 32 * 4 * (size - 1) / size


def test_a_collective_that_is_started_and_awaited_counts_once_and_one_of_a_single_device_not_at_all():
    (one,) = traffic(
        module(
            PARAMETER,
            "%s = (f32[16,32]{1,0}, f32[64,32]{1,0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}",
            "%d = f32[64,32]{1,0} all-gather-done(%s)",
            "ROOT %r = f32[16,32]{1,0} all-reduce(%p), replica_groups=[8,1]<=[8], to_apply=%add",
        )
    ).collectives
    assert one == Collective("all-gather", "f32", 64 * 32 * 4, 4, 1)
    assert one.sent == 48 * 32 * 4


def test_a_collective_that_advances_in_several_fusions_counts_once():
    # As a TPU's compiler overlaps it: the fusion that starts it, those that advance it, and the one that ends it.
    part = "%{name} (q: f32[16,32]) -> f32[64,32] {{\n  %q.{name} = f32[16,32]{{1,0}} parameter(0)\n  ROOT %g.{name} = "
    part += "f32[64,32]{{1,0}} all-gather(%q.{name}), channel_id=5, replica_groups=[2,4]<=[8], dimensions={{0}}\n}}"
    more = "\n\n".join(part.format(name=name) for name in ("first", "second"))
    lines = [f"%{name} = f32[64,32]{{1,0}} fusion(%p), kind=kCustom, calls=%{name}" for name in ("first", "second")]
    (one,) = traffic(module(PARAMETER, *lines, more=more)).collectives
    assert one == Collective("all-gather", "f32", 64 * 32 * 4, 4, 1)


def test_several_arrays_in_one_collective_are_added_up():
    (one,) = traffic(
        module(
            PARAMETER,
            "%q = bf16[8]{0} constant({...})",
            "%r = (f32[16,32]{1,0}, /*index=1*/bf16[8]{0}) all-reduce(%p, %q), replica_groups={}, to_apply=%add",
        )
    ).collectives
    assert one.bytes == 16 * 32 * 4 + 8 * 2


CONDITION = """%{name} (s: (s32[], f32[16,32])) -> pred[] {{
  %s.{name} = (s32[], f32[16,32]{{1,0}}) parameter(0)
  %i.{name} = s32[] get-tuple-element(%s.{name}), index=0
  %n.{name} = s32[]{{:T(128)}} constant({trips})
  ROOT %c.{name} = pred[] compare(%i.{name}, %n.{name}), direction={direction}
}}"""
BODY = """%{name} (t: (s32[], f32[16,32])) -> (s32[], f32[16,32]) {{
  %t.{name} = (s32[], f32[16,32]{{1,0}}) parameter(0)
  %x.{name} = f32[16,32]{{1,0}} get-tuple-element(%t.{name}), index=1
  {line}
}}"""
REDUCE = "%y = f32[16,32]{1,0} all-reduce(%x.inner), replica_groups={}, to_apply=%add"
LOOP = "%w = (s32[], f32[16,32]{1,0}) while(%t.outer), condition=%few, body=%inner"


def loops(outside: str, direction: str = "LT") -> str:
    more = [CONDITION.format(name="few", trips=3, direction=direction), BODY.format(name="inner", line=REDUCE)]
    more += [CONDITION.format(name="many", trips=5, direction="LT"), BODY.format(name="outer", line=LOOP)]
    return module(PARAMETER, f"%w = (s32[], f32[16,32]{{1,0}}) while(%t), {outside}", more="\n\n".join(more))


def test_loops_in_loops_count_the_product_of_their_iterations():
    found = traffic(loops("condition=%many, body=%outer"))
    assert (found.exact, [one.count for one in found.collectives]) == (True, [15])
    stated = 'condition=%many, body=%outer, backend_config={"known_trip_count":{"n":"7"}}'
    assert [one.count for one in traffic(loops(stated)).collectives] == [21]


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    found = traffic(loops("condition=%many, body=%outer", direction="NE"))
    assert (found.exact, [one.count for one in found.collectives]) == (False, [5])


def test_memory_traffic_counts_slices_and_not_the_arrays_that_they_are_of():
    size = 16 * 32 * 4
    plain = module(PARAMETER, "ROOT %r = f32[16,32]{1,0} add(%p, %p)")
    assert traffic(plain).memory == 3 * size
    inside = module(PARAMETER, "ROOT %r = f32[16,32]{1,0:T(8,128)S(1)} negate(%p)")
    assert traffic(inside).memory == size  # the result stays in the vector memory of a TPU
    fused = """%slice (a: f32[12,16,32], i: s32[]) -> f32[16,32] {
  %a = f32[12,16,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %part = f32[1,16,32]{2,1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,16,32}
  ROOT %b = f32[16,32]{1,0} bitcast(%part)
}"""
    lines = (
        "%big = f32[12,16,32]{2,1,0} parameter(1)",
        "%k = s32[] constant(3)",
        "%r = f32[16,32]{1,0} fusion(%big, %k), kind=kLoop, calls=%slice",
    )
    assert traffic(module(PARAMETER, *lines, more=fused)).memory == pytest.approx(2 * size, abs=8)
    written = """%update (a: f32[12,16,32], u: f32[1,16,32], i: s32[]) -> f32[12,16,32] {
  %a = f32[12,16,32]{2,1,0} parameter(0)
  %u = f32[1,16,32]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[12,16,32]{2,1,0} dynamic-update-slice(%a, %u, %i)
}"""
    lines = (
        *lines[:2],
        "%u = f32[1,16,32]{2,1,0} parameter(2)",
        "%r = f32[12,16,32]{2,1,0} fusion(%big, %u, %k), kind=kLoop, calls=%update",
    )
    assert traffic(module(PARAMETER, *lines, more=written)).memory == pytest.approx(2 * size, abs=8)


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        traffic("module @jit_step {}")
