"""The launch scripts, with other programs in place of those of a cluster."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "experiments" / "launch"


@pytest.fixture
def cluster(tmp_path):
    """A function that puts a program of a cluster, which first notes how it was called, before all others."""

    def add(name: str, then: str = "") -> None:
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/called\n{then}\n')
        program.chmod(0o755)

    return add


def launched(folder: Path, script: str, *words: str, **environment: str) -> tuple[int, list[str]]:
    """The exit code of a launch script, and how it called the programs in `folder`."""
    settings = {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
    code = subprocess.run([str(LAUNCH / script), *words], env=settings, timeout=60, capture_output=True).returncode
    called = folder / "called"
    return code, called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize(("code", "requeued"), [(0, []), (2, []), (75, ["scontrol requeue 7"])])
def test_slurm_puts_a_stopped_run_into_the_queue_again(code, requeued, cluster, tmp_path):
    cluster("srun", f"exit {code}")
    cluster("scontrol")
    found, called = launched(tmp_path, "slurm.sh", "pretrain", "umd", "--seed", "1", SLURM_JOB_ID="7")
    assert found == code
    assert called == ["srun python experiments/pretrain.py umd --seed 1", *requeued]


@pytest.mark.parametrize("kind", ["OMPI_COMM_WORLD", "PMI", "MV2_COMM_WORLD"])
def test_mpi_tells_each_process_where_to_meet(kind, cluster, tmp_path):
    cluster("python", "exit 75")
    numbers = {f"{kind}_RANK": "3", f"{kind}_SIZE": "4"}
    code, called = launched(tmp_path, "mpi.sh", "finetune", "--from", "runs/umd", COORDINATOR="node1", **numbers)
    where = "--sharding.coordinator node1:12355 --sharding.num-processes 4 --sharding.process-id 3"
    assert called == [f"python experiments/finetune.py --from runs/umd {where}"]
    assert code == 75


def test_mpi_meets_at_the_first_host_of_a_slurm_job(cluster, tmp_path):
    cluster("scontrol", "echo c101; echo c102")
    cluster("python")
    settings = {"PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_JOB_NODELIST": "c[101-102]"}
    _, called = launched(tmp_path, "mpi.sh", "pretrain", **settings)
    assert "--sharding.coordinator c101:12355 " in called[-1]


def test_a_tpu_slice_is_started_again_until_it_is_done(cluster, tmp_path):
    # The first time every host is stopped, the second time they finish.
    cluster("gcloud", f"(( $(wc -l < {tmp_path}/called) > 1 )) && echo exit code 0 || echo exit code 75")
    code, called = launched(tmp_path, "tpu_pod.sh", "pod", "us-east1-d", "pretrain", "umd", PAUSE="0")
    assert code == 0
    assert sum("ssh pod --zone=us-east1-d --worker=all" in line for line in called) == 2
    assert "--sharding.coordinator auto" in " ".join(called)


def test_a_tpu_slice_with_bad_input_is_not_started_again(cluster, tmp_path):
    cluster("gcloud", "echo exit code 2")
    code, called = launched(tmp_path, "tpu_pod.sh", "pod", "us-east1-d", "pretrain", "umd", PAUSE="0")
    assert code != 0
    assert sum("gcloud" in line for line in called) == 1
