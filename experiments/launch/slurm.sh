#!/bin/bash
# Trains on several machines of a SLURM cluster, with a process for each GPU. From the root of the repository:
#
#     sbatch experiments/launch/slurm.sh pretrain umd-b4-in64 --run-dir /shared/runs/b4
#
# The processes find each other by themselves. The run directory must be on a file system that all machines share.
# SIGTERM comes 5 minutes before the time is over; the run is then saved, and the job put into the queue again.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

trap : TERM # SLURM may send it to this script too, which then goes on waiting
srun python "experiments/$1.py" "${@:2}" &
wait $!
code=$?
while kill -0 $! 2>/dev/null; do
    wait $!
    code=$?
done

# 75: stopped by a signal, with everything saved.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
