#!/bin/bash
# Trains as several processes under Open MPI, Intel MPI, MPICH or MVAPICH, whose launcher starts this for each of them:
#
#     COORDINATOR=node1 mpirun -n 16 experiments/launch/mpi.sh pretrain umd-b4-in64 --run-dir /shared/runs/b4
#     ibrun experiments/launch/mpi.sh pretrain umd-b4-in64 --run-dir /shared/runs/b4
#
# COORDINATOR is the host of process 0; in a SLURM job, by default the first one. PORT must be free there. The run
# directory must be on a file system that all machines share. Exit code 75 means that a signal stopped the run with
# everything saved; in a batch script, queue the job again:
#
#     ibrun ...; [ $? -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
set -eu
rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${MV2_COMM_WORLD_RANK:?no MPI launcher has started this script}}}
size=${OMPI_COMM_WORLD_SIZE:-${PMI_SIZE:-${MV2_COMM_WORLD_SIZE:?no MPI launcher has started this script}}}
host=${COORDINATOR:-$(scontrol show hostnames "${SLURM_JOB_NODELIST:?set COORDINATOR to the host of process 0}" | head -n 1)}

exec python "experiments/$1.py" "${@:2}" --sharding.coordinator "$host:${PORT:-12355}" \
    --sharding.num-processes "$size" --sharding.process-id "$rank"
