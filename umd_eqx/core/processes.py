"""Several processes, on one or many hosts, that compute together: how they meet, agree, and fetch arrays."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # JAX gives no other access to the service
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from umd_eqx.core.errors import BadInput

DETECT = "auto"
"""The coordinator that `jax.distributed` finds by itself."""

STOP, PROGRESS = "umd_eqx/stop", "umd_eqx/progress"
"""Keys of the service: the step at which all stop, and what each process has begun."""

TOLD, TOLD_MS = "umd_eqx_told", 600_000
"""Key of the service for what is told to the first process, and how long it waits for each of them."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """How the processes of a run find each other. It is no part of the run, which may change it on resuming."""

    coordinator: str | None = None
    """HOST:PORT at which the processes of a run meet, on the host of process 0; or auto, if JAX can find it, as on the
    hosts of a TPU pod. None: found where SLURM, Open MPI or GKE has started several processes."""
    num_processes: int | None = None
    """Number of processes that meet at HOST:PORT. 1: this process alone, whatever has started it."""
    process_id: int | None = None
    """Number of this process among those that meet at HOST:PORT, from 0."""
    hang_seconds: float = 3600.0
    """Seconds in which a process must end a step or begin an evaluation. After that, all end, with exit code 75."""

    def validate(self) -> None:
        """Raises `BadInput` naming a field of `sharding` for values that are missing or not valid."""
        number, this = self.num_processes, self.process_id
        if not 1.0 <= self.hang_seconds <= 1e9:
            raise BadInput("sharding.hang_seconds", f"{self.hang_seconds} is not 1 .. 1e9", "The default is 3600")
        if self.coordinator in (None, DETECT):
            for name, value in (("num_processes", number), ("process_id", this)):
                if value is not None and (name, value, self.coordinator) != ("num_processes", 1, None):
                    problem = f"{value} has no meaning without the address of process 0"
                    raise BadInput(f"sharding.{name}", problem, "Also give `sharding.coordinator`, as HOST:PORT")
            return
        host, _, port = str(self.coordinator).rpartition(":")
        if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 2**16:
            said = f"{str(self.coordinator)[:60]!r} is not HOST:PORT"
            raise BadInput("sharding.coordinator", said, "Use HOST:PORT, or auto")
        if number is None or number < 1:
            problem = "the number of processes is missing" if number is None else f"{number} is too small"
            raise BadInput("sharding.num_processes", problem, "Use 1 or more")
        if this is None or not 0 <= this < number:
            problem = "the number of this process is missing" if this is None else f"{this} is not valid"
            raise BadInput("sharding.process_id", problem, f"Use 0 .. {number - 1}, another for each process")


class Launcher(NamedTuple):
    """What has started this process as one of several, and its number among them."""

    name: str
    process_id: int


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher | None:
    """Returns what has started this process as one of several, by the environment: SLURM, Open MPI or GKE; or None.

    In these environments `jax.distributed.initialize` needs no arguments and asks no server.
    """
    slices, hosts = environ.get("MEGASCALE_NUM_SLICES", ""), environ.get("TPU_WORKER_HOSTNAMES", "")
    pods = len(hosts.split(",")) * int(slices if slices.isdecimal() else 1)
    found = (
        ("SLURM", "SLURM_STEP_NODELIST", environ.get("SLURM_NTASKS", ""), "SLURM_PROCID"),
        ("Open MPI", "OMPI_MCA_orte_hnp_uri", environ.get("OMPI_COMM_WORLD_SIZE", ""), "OMPI_COMM_WORLD_RANK"),
        ("GKE", "TPU_WORKER_HOSTNAMES", str(pods), "TPU_WORKER_ID"),
    )
    for name, present, count, which in found:
        number = environ.get(which, "")
        if present in environ and count.isdecimal() and int(count) > 1 and number.isdecimal():
            return Launcher(name, int(number))
    return None


def join(config: ProcessesConfig) -> None:
    """Joins the processes of a run, if there are several. Call it before any array exists.

    Raises `BadInput` naming a field of `sharding` if the values are not valid, or the processes do not meet.
    """
    config.validate()
    if config.num_processes == 1 or (config.coordinator is None and launcher() is None):
        return
    # JAX's own handler of SIGTERM would keep the signal from Python, where it stops a run.
    jax.config.update("jax_enable_preemption_service", False)
    address = None if config.coordinator == DETECT else config.coordinator
    try:
        jax.distributed.initialize(address, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        hint = "Start all processes within 5 minutes of each other, each with the address of process 0"
        raise BadInput("sharding.coordinator", f"the processes did not meet ({reason})", hint) from error


def is_first() -> bool:
    """Whether this is the process that writes: the only one, or number 0 of several. Never compute behind this."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process alone, and returns its result in every process.

    Every process must call this. The result is a JSON value (in several processes, tuples return as lists). A
    `BadInput` is raised in every process.
    """
    if jax.process_count() == 1:
        return function()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": function()}
        except BadInput as error:
            said = {"error": (error.field, error.problem, error.hint)}
    text = json.dumps(said).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Rounded up to powers of two: each length is compiled.
    padded = np.zeros(1 << (length - 1).bit_length(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)[: len(padded)]
    said = json.loads(multihost_utils.broadcast_one_to_all(padded)[:length].tobytes())
    if "error" in said:
        raise BadInput(*said["error"])
    return said["value"]


def to_first(name: str, value: Any, judge: Callable[[list[Any]], None]) -> None:
    """Calls a function in the first process with a JSON value of each process, by their numbers.

    Every process must call this, with a `name` that no other call has. A `BadInput` is raised in every process. The
    values go through the service by which the processes met, and not through the devices.
    """
    client = service()
    if client is None:
        return judge([value])
    this, count, verdict = jax.process_index(), jax.process_count(), f"{TOLD}/{name}/verdict"
    client.key_value_set(f"{TOLD}/{name}/{this}", json.dumps(value), allow_overwrite=True)
    if this == 0:
        keys = [f"{TOLD}/{name}/{i}" for i in range(count)]
        values = [json.loads(client.blocking_key_value_get(key, TOLD_MS)) for key in keys]
        said = None
        try:
            judge(values)
        except BadInput as error:
            said = (error.field, error.problem, error.hint)
        for key in keys:
            client.key_value_delete(key)
        client.key_value_set(verdict, json.dumps(said), allow_overwrite=True)
    said = json.loads(client.blocking_key_value_get(verdict, TOLD_MS))
    if said is not None:
        raise BadInput(*said)


def to_host(tree: PyTree) -> PyTree:
    """Returns a PyTree of arrays as whole NumPy arrays in every process. Every process must call this."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def to_devices(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Places arrays that are the same in every process, as parts of arrays over all processes.

    Arrays that lie on the devices of several processes already are moved by JAX.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


class StopStep:
    """The step at which all processes stop, once one of them is told to.

    The processes agree on it through the service by which they met, and not by a computation on the devices, which
    would be one more program for each of them to run in the same order as the steps.

    A process that calls this for step s has waited for step s - 1, to which all processes contribute. One that is told
    to stop when it calls this for step s names step s + 2. None can call this for step s + 2 before step s + 1 is
    computed, and so before the first one has named its step and gone on.
    """

    def __init__(self) -> None:
        self._step: int | None = None

    def reached(self, step: int, asked: bool) -> bool:
        """Whether to stop after `step`; `asked` is whether this process was told to.

        With one process, that is `asked`. With several, the result is the same in all of them.
        """
        client = service()
        if client is None:
            return asked
        report_progress(f"step {step}")
        if asked and self._step is None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
                client.key_value_set(STOP, str(step + 2))
        if self._step is None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # no process has been told to
                self._step = int(client.key_value_try_get(STOP))
        return self._step is not None and step >= self._step


def service() -> Any | None:
    """Returns the client of the service by which the processes of a run have met; None for a process on its own."""
    state = distributed.global_state
    return state.client if state.client is not None and (state.num_processes or 1) > 1 else None


def report_progress(what: str) -> None:
    """Tells the other processes, if any, what this one begins: see `umd_eqx.core.peers.Peers`."""
    if (client := service()) is not None:
        key = f"{PROGRESS}/{distributed.global_state.process_id}"
        client.key_value_set(key, what, allow_overwrite=True)
