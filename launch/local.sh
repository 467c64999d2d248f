#!/usr/bin/env bash
# Trains on one machine: one process for all its devices, or one per GPU.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/local.sh [--gpus N] [--port PORT] [--grace SECONDS] [--dry-run] -- TRAINING

Trains on this machine with `python -m w2v_jax.train TRAINING`: one process for all devices, or with --gpus one
process for each of N GPUs. SIGTERM and Ctrl-C reach every process, which saves and ends; the same command goes on.
When one dies, the others are ended. The exit code is that of the training (143: saved after SIGTERM).

  --gpus N         one process per GPU, for the first N of CUDA_VISIBLE_DEVICES or of the machine
  --port PORT      where the processes meet on this machine (default: chosen by this script)
  --grace SECONDS  how long the others may go on once one has ended (default: 120)
  --dry-run        print the commands, run nothing

Example: launch/local.sh --gpus 4 -- --config=configs/w2v2_base.py --workdir=runs/base --config.data.root=DIR
TEXT
}

read_options "gpus port grace" "" "$@"
[ ${#words[@]} = 0 ] || wrong "'${words[0]}' stands before --; arguments of the training stand after it"
need_training
need_number port $((20000 + $$ % 20000))
need_number grace 120
need_tool python "Activate the environment in which w2v_jax is installed"

commands=()
if [ -z "${option[gpus]:-}" ]; then
  commands=("$(quoted python -m w2v_jax.train "${train[@]}")")
else
  need_number gpus 1
  count=${option[gpus]}
  IFS=, read -r -a visible <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
  ((${#visible[@]} >= count)) || wrong "--gpus=$count, and CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names fewer"
  for ((n = 0; n < count; n++)); do
    commands+=("$(quoted env "CUDA_VISIBLE_DEVICES=${visible[n]}" python -m w2v_jax.train "${train[@]}" \
      "--distributed=localhost:${option[port]},$count,$n")")
  done
fi

if $dry_run; then
  printf '%s\n' "${commands[@]}"
  exit 0
fi

declare -A running=()
forward() { kill -TERM "${!running[@]}" 2>/dev/null || true; }
# shellcheck disable=SC2329 # called by trap
stop() {
  say "asked to stop: the training saves and ends"
  trap '' TERM INT # a process that is saving takes a second signal for an order to die
  forward
}

say "starting ${#commands[@]} process(es)"
for command in "${commands[@]}"; do
  printf '+ %s\n' "$command" >&2
  eval "exec $command" &
  running[$!]=yes
done
trap stop TERM INT

result=0 deadline=''
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.2 || true
  for pid in "${!running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    code=0
    wait "$pid" || code=$?
    unset "running[$pid]"
    if [ "$code" != 0 ] && { [ "$result" = 0 ] || [ "$result" = 143 ]; }; then result=$code; fi
    if [ -n "$deadline" ] || [ ${#running[@]} = 0 ]; then continue; fi
    deadline=$((SECONDS + option[grace]))
    if [ "$code" != 0 ] && [ "$code" != 143 ]; then
      say "a process ended with exit code $code: ending the others"
      forward
    fi
  done
  if [ -n "$deadline" ] && ((SECONDS >= deadline)) && [ ${#running[@]} -gt 0 ]; then
    say "after ${option[grace]} s ${#running[@]} process(es) still run: killing them"
    kill -KILL "${!running[@]}" 2>/dev/null || true
    deadline=$((SECONDS + 60))
  fi
done

case $result in
  0) say "done" ;;
  143) say "saved and stopped; the same command goes on (exit code 143)" ;;
  *) say "failed with exit code $result; its message stands above" ;;
esac
exit "$result"
