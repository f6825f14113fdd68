"""The predicted time of a program on chips that are not here, from data sheets: a roofline without overlap.

The chips' figures are from the vendors' data sheets and, for the links of TPUs, from "How to scale your model" (Austin
et al. 2025, jax-ml.github.io/scaling-book).
"""

import dataclasses

from umd_eqx.core.hlo import Traffic
from umd_eqx.training.flops import PEAK_FLOPS

EFFICIENCY = 0.6
"""The fraction of the peak that matrix products are assumed to reach."""

ASSUMPTIONS = (
    f"matrix products, with those that are recomputed, at {EFFICIENCY:.0%} of the peak",
    "every array that a fused operation reads or writes passes through the main memory at its full bandwidth",
    "collectives as rings at the full bandwidth of a chip's links; between hosts of GPUs, of a network card for each",
    "products and memory overlap, collectives overlap with nothing; reading of data and evaluations are not included",
)
"""The assumptions of `predict`."""


Number = int | float


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip in figures.

    - `name`: its name, as `PEAK_FLOPS` has it for those with a data sheet.
    - `peak`, `peak_float32`: dense FLOP/s of matrix products of bfloat16, and of float32 at JAX's default precision:
        bfloat16 on TPUs, TF32 on GPUs.
    - `memory`, `memory_bandwidth`: bytes of its main memory, and bytes/s.
    - `link_bandwidth`: bytes/s that it can send to the others of its host, or of its slice of TPUs.
    - `network_bandwidth`: bytes/s that it can send to other hosts.
    """

    name: str
    peak: Number
    peak_float32: Number
    memory: Number
    memory_bandwidth: Number
    link_bandwidth: Number
    network_bandwidth: Number


def _tpu(name: str, memory: Number, bandwidth: Number, links: Number) -> Chip:
    return Chip(name, PEAK_FLOPS[name], PEAK_FLOPS[name], memory, bandwidth, links, links)


CHIPS = {
    "v4": _tpu("TPU v4", 32 * 2**30, 1.2e12, 6 * 45e9),
    "v5e": _tpu("TPU v5 lite", 16 * 2**30, 8.1e11, 4 * 45e9),
    "v5p": _tpu("TPU v5p", 95 * 2**30, 2.8e12, 6 * 90e9),
    "v6e": _tpu("TPU v6 lite", 32 * 2**30, 1.6e12, 4 * 90e9),
    "a100": Chip("NVIDIA A100", PEAK_FLOPS["NVIDIA A100"], 156e12, 80e9, 2.0e12, 300e9, 25e9),
    "h100": Chip("NVIDIA H100", PEAK_FLOPS["NVIDIA H100"], 494e12, 80e9, 3.35e12, 450e9, 50e9),
    "cpu": Chip("CPU, with nominal figures", 1e11, 1e11, 0.0, 2e10, 1e10, 1e10),
}
"""The chips that can be planned for, by the name in a target."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The seconds that a program needs for each resource of a chip."""

    products: float
    memory: float
    collectives: float

    @property
    def seconds(self) -> float:
        """The time of one call of the program."""
        return max(self.products, self.memory) + self.collectives

    @property
    def limit(self) -> str:
        """The resource that takes the longest: `products`, `memory` or `collectives`."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def predict(chip: Chip, flops: Number, traffic: Traffic, *, float32: bool, hosts: int = 1) -> Prediction:
    """Returns the predicted time of a program under `ASSUMPTIONS`.

    **Arguments:**

    - `chip`: the chip that each device is.
    - `flops`: the FLOPs of the matrix products on one device.
    - `traffic`: what one device exchanges with the others and with its memory.
    - `float32`: whether the products are of float32.
    - `hosts`: the number of hosts, between which GPUs communicate over a slower network.
    """
    peak = chip.peak_float32 if float32 else chip.peak
    links = chip.link_bandwidth if hosts == 1 else chip.network_bandwidth
    sent = sum(one.sent for one in traffic.collectives)
    return Prediction(flops / (peak * EFFICIENCY), traffic.memory / chip.memory_bandwidth, sent / links)
