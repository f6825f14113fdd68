"""How processes find each other; what they do together is in tests/faults/test_two_processes.py."""

import numpy as np
import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.core.processes import Launcher, ProcessesConfig, StopStep, from_first, join, launcher, to_host


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"coordinator": "here"}, "coordinator"),
        ({"coordinator": "here:"}, "coordinator"),
        ({"coordinator": "here:65536", "num_processes": 2, "process_id": 0}, "coordinator"),
        ({"coordinator": f"here:{'9' * 5000}", "num_processes": 2, "process_id": 0}, "coordinator"),
        ({"coordinator": "here:1234"}, "num_processes"),
        ({"coordinator": "here:1234", "num_processes": 0, "process_id": 0}, "num_processes"),
        ({"coordinator": "here:1234", "num_processes": 2}, "process_id"),
        ({"coordinator": "here:1234", "num_processes": 2, "process_id": 2}, "process_id"),
        ({"num_processes": 2, "process_id": 0}, "num_processes"),
        ({"coordinator": "auto", "process_id": 0}, "process_id"),
    ],
)
def test_processes_that_could_not_meet_are_refused_at_once(fields, at_fault):
    with pytest.raises(BadInput) as error:
        join(ProcessesConfig(**fields))
    assert error.value.field == f"sharding.{at_fault}"


SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "node[1-4]"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1"}
POD = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, Launcher("SLURM", 3)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, None),  # not under srun
        (MPI, Launcher("Open MPI", 0)),
        (POD, Launcher("GKE", 1)),
        (POD | {"TPU_WORKER_HOSTNAMES": "a"}, None),
        (POD | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Launcher("GKE", 1)),
        ({"SLURM_JOB_ID": "7", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_the_environment_says_what_has_started_several_processes(environment, expected):
    assert launcher(environment) == expected


def test_one_process_stays_alone_whatever_has_started_it(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("joined"))
    join(ProcessesConfig(num_processes=1))


def test_one_process_agrees_with_itself():
    assert from_first(lambda: {"step": 4}) == {"step": 4}
    stop = StopStep()
    assert [stop.reached(4, flag) for flag in (False, True, False)] == [False, True, False]
    np.testing.assert_array_equal(to_host((np.arange(3),))[0], [0, 1, 2])
