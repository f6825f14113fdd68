"""Devices to compile for that need not be on this machine: slices of TPUs, hosts of GPUs, and CPUs for tests.

TPUs need the extra `plan-tpu` and GPUs the extra `plan-cuda`. Nothing is run on the devices of a target.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from umd_eqx.core.errors import BadInput
from umd_eqx.core.programs import FAST_COMPILATION
from umd_eqx.training.prediction import CHIPS, Chip

MAX_DEVICES = 4096
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
"""What libtpu otherwise asks the machine for, which is not a host of TPUs. Topologies do not depend on it."""

GPUS_PER_HOST = 8
GPU_SPECIFICATIONS = Path(__file__).parent / "gpus"
"""XLA's descriptions of GPUs (`stream_executor.GpuTargetConfigProto` as text)."""

GPU_MEMORY = 0.75
"""The fraction of a GPU's memory that JAX takes by default (`XLA_PYTHON_CLIENT_MEM_FRACTION`)."""

GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}
"""Options for compiling without a GPU: nothing can be timed, and products are left to cuBLAS."""

EXAMPLES = "v5e:16x16, v5p:4x4x4, h100:8, a100:4x8 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    - `name`: as given, such as `v5e:16x16`.
    - `chip`: the chip that each device is.
    - `devices`: the devices, for a mesh.
    - `memory`: the bytes that a program can use on each device.
    - `hosts`: the number of hosts with a network between them: 1 for a slice of TPUs.
    - `options`: options for the compiler.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    memory: int | float
    hosts: int
    options: dict[str, str | bool]


def find_target(name: str) -> Target:
    """Returns the devices of a target: `v4`, `v5e`, `v5p` or `v6e` with the shape of a slice of TPUs (`v5e:16x16`),
    `a100` or `h100` with the number of GPUs, or of hosts and GPUs (`h100:8`, `h100:4x8`), or `cpu:N`.

    Must be called before JAX is used, because it selects JAX's platform: the CPU of this machine.

    **Raises:** `BadInput` naming `target` if it is not valid, or if the packages that it needs are not installed.
    """
    match = re.fullmatch(r"(\w+):(\d{1,4}(?:x\d{1,4}){0,2})", name)
    if match is None or match[1] not in CHIPS:
        raise BadInput("target", f"{name!r} is not a target", f"Use, for example, {EXAMPLES}")
    kind, shape = match[1], [int(number) for number in match[2].split("x")]
    if not 1 <= math.prod(shape) <= MAX_DEVICES:
        raise BadInput("target", f"{name} has {math.prod(shape):,} devices", f"Use 1 to {MAX_DEVICES:,}")
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        return _cpus(name, shape)
    return _gpus(name, kind, shape) if kind in ("a100", "h100") else _tpus(name, kind, shape)


def _cpus(name: str, shape: list[int]) -> Target:
    count = math.prod(shape)
    with contextlib.suppress(RuntimeError):  # JAX was used before, as in a notebook
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        problem = f"JAX was started with {len(devices)} of {count} devices already"
        raise BadInput("target", problem, "Start a new process, or use a smaller number")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
    return Target(name, CHIPS["cpu"], devices[:count], memory, 1, FAST_COMPILATION)


def _tpus(name: str, kind: str, shape: list[int]) -> Target:
    _require("libtpu", name, "plan-tpu")
    dimensions = 2 if kind in ("v5e", "v6e") else 3
    if len(shape) != dimensions:
        example = "v5e:16x16" if dimensions == 2 else "v5p:4x4x4"
        raise BadInput("target", f"{name} does not have {dimensions} dimensions", f"Write them as in {example}")
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    chip = CHIPS[kind]
    return Target(name, chip, _topology(name, name, platform="tpu"), chip.memory, 1, {})


def _gpus(name: str, kind: str, shape: list[int]) -> Target:
    _require("jax_cuda12_plugin", name, "plan-cuda")
    hosts, each = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[-1])
    if len(shape) > 2 or each > GPUS_PER_HOST:
        problem = f"{name} is not a number of hosts with up to {GPUS_PER_HOST} GPUs"
        raise BadInput("target", problem, f"Write hosts x GPUs, such as {kind}:4x8")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    config = (GPU_SPECIFICATIONS / f"{kind}.txtpb").read_text()
    devices = _topology(name, "", platform="cuda", target_config=config, topology=f"1x{hosts}x{each}")
    chip = CHIPS[kind]
    return Target(name, chip, devices, GPU_MEMORY * chip.memory, hosts, GPU_OPTIONS)


def _require(module: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        problem = f"compiling for {name} needs packages that are not installed"
        raise BadInput("target", problem, f'Install them with `pip install -e ".[{extra}]"`')


def _topology(target: str, name: str, /, **options: Any) -> Sequence[Any]:
    try:
        return topologies.get_topology_desc(name, **options).devices
    except (JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        problem = f"{target} cannot be compiled for ({str(error).strip().splitlines()[0]})"
        raise BadInput("target", problem, f"Use another shape, such as {EXAMPLES}") from error
