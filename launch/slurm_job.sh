#!/usr/bin/env bash
# The batch script of slurm.sh: slurm_job.sh node|gpu GPUS TRAINING...  It stands alone, for SLURM runs a copy of it.
set -euo pipefail

each=$1 gpus=$2
shift 2

# On SLURM, JAX gives each process the one GPU with its local number, unless it is told which ones.
unset JAX_LOCAL_DEVICE_IDS
if [ "$each" = node ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over by itself

echo "slurm_job: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID, one process per $each"
trap : TERM # this shell outlives the signal, so that the processes can save
code=0
# Every process sees all GPUs of its node. When one ends, the others have time to finish writing.
srun --gpu-bind=none --kill-on-bad-exit=0 --wait=300 python -m w2v_jax.train "$@" --distributed || code=$?

if [ "$code" = 143 ]; then # saved after SIGTERM
  state=$(squeue --noheader "--jobs=$SLURM_JOB_ID" --format=%T) || state=UNKNOWN
  if [ "$state" = RUNNING ]; then # and not cancelled by a person
    echo "slurm_job: saved before the time limit; the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "slurm_job: saved; the job is $state and is not queued again by itself"
  fi
else
  echo "slurm_job: the training ended with exit code $code"
fi
exit "$code"
