#!/bin/bash
# Trains on all hosts of a Cloud TPU slice, with a process for each host. From any machine with gcloud:
#
#     experiments/launch/tpu_pod.sh NAME ZONE pretrain umd-b4-in64 --run-dir /shared/runs/b4
#
# Each host has the repository in ~/umd_eqx (or in FOLDER), with its packages installed, and the file system of the run
# directory mounted. After exit code 75 (stopped by a signal, with everything saved), the run is started again.
set -u
name=$1 zone=$2 command=$3
words=$(printf '%q ' "${@:4}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT

while :; do
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="cd ${FOLDER:-umd_eqx} && \
        python experiments/$command.py $words --sharding.coordinator auto; echo \"exit code \$?\"" 2>&1 | tee "$log"
    grep -q 'exit code 75$' "$log" || break
    sleep "${PAUSE:-60}"
done
! grep -q 'exit code [1-9]' "$log" && grep -q 'exit code 0$' "$log" # the exit code of this script
