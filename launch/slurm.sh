#!/usr/bin/env bash
# Submits a training to SLURM.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh NAME --gpus-per-node N [options] -- TRAINING

Submits `python -m w2v_jax.train TRAINING` as the job NAME, in the environment that is active now. Before the time limit
the training gets SIGTERM, saves, and the job is queued again by itself until the training is complete; preempted jobs
are queued again by SLURM. A job NAME that is queued or running already is left alone.

  --gpus-per-node N    GPUs of each node
  --nodes N            nodes (default: 1)
  --per-gpu            one process per GPU (default: one process per node, for all its GPUs)
  --cpus-per-task N    CPU cores of each process, for reading the data (default: 8)
  --time LIMIT         time limit of the job, e.g. 24:00:00 (default: the partition's)
  --margin SECONDS     how long before the limit the training is asked to save (default: 300)
  --partition, --account NAME
  --yes                do not ask
  --dry-run            print the commands, run nothing

Other options of sbatch: by its variables, e.g. SBATCH_QOS=long launch/slurm.sh ...
Example: launch/slurm.sh base --nodes 2 --gpus-per-node 8 --time 24:00:00 -- --config=configs/w2v2_base.py \
           --workdir=runs/base --config.data.root=DIR
TEXT
}

read_options "gpus-per-node nodes cpus-per-task time margin partition account" "per-gpu" "$@"
[ ${#words[@]} -le 1 ] || wrong "'${words[1]}' stands before --; arguments of the training stand after it"
name=${words[0]:-}
need_name "$name"
need_option gpus-per-node "how many GPUs each node has"
need_number gpus-per-node 8
need_number nodes 1
need_number cpus-per-task 8
need_number margin 300
need_training
need_tool sbatch "Run this on a machine from which jobs are submitted"

gpus=${option["gpus-per-node"]}
each=node tasks=1
if [ -n "${option["per-gpu"]:-}" ]; then each=gpu tasks=$gpus; fi
confirm "This submits a job for ${option[nodes]} node(s) with $gpus GPU(s) each, which may be charged to an account"

say "looking for a job $name"
job=$(ask "" squeue --me "--name=$name" --noheader --format=%i) || fail "squeue failed; is SLURM reachable?"
if [ -n "$job" ]; then
  say "nothing to do: job $name is queued or running already, as ${job//$'\n'/, }"
  exit 0
fi
command=(sbatch --parsable "--job-name=$name" "--nodes=${option[nodes]}" "--ntasks-per-node=$tasks")
command+=("--gpus-per-node=$gpus" "--cpus-per-task=${option["cpus-per-task"]}" "--signal=TERM@${option[margin]}")
command+=(--requeue --open-mode=append "--output=$name-%j.log")
for key in time partition account; do
  if [ -n "${option[$key]:-}" ]; then command+=("--$key=${option[$key]}"); fi
done
job=$(ask JOB "${command[@]}" "$here/slurm_job.sh" "$each" "$gpus" "${train[@]}") || fail "sbatch refused the job"
job=${job%%;*}
say "submitted job $job; its log: tail -F $name-$job.log; to end it: scancel $job"
