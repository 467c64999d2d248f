#!/usr/bin/env bash
# Trains on a Cloud TPU, of one host or many: asks for it, starts the training, watches it, and gives the TPU back.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"
root=$(cd "$(dirname "$0")/.." && pwd)

parts=(w2v_jax configs launch requirements setup.py pyproject.toml README.md) # of the code, for the workers
folder=w2v/code                                                              # where it goes, in the home of each worker

usage() {
  cat <<'TEXT'
usage: launch/tpu.sh train NAME --zone ZONE --accelerator TYPE [options] -- TRAINING
       launch/tpu.sh status|logs|stop|delete NAME --zone ZONE [--project PROJECT]

train   asks for the TPU as a queued resource and waits for it, copies this code to every worker, installs it, runs
        `python -m w2v_jax.train TRAINING` on all of them and shows the output of the first. After a preemption the TPU
        is asked for again, and the same training goes on from its last checkpoint. At the end, also after an error, the
        TPU is deleted. Ctrl-C ends the watching, not the training; the same command watches again.
status  shows the state of the request and of the training
logs    shows the output of all workers
stop    lets the training save and end; the TPU stays
delete  the same, and deletes the TPU

  --zone ZONE          e.g. us-west4-a
  --accelerator TYPE   e.g. v5litepod-16, v4-32, v6e-64; all hosts of the TPU are used
  --spot               cheaper, and may be taken away at any time
  --bucket BUCKET      a Cloud Storage bucket, mounted by gcsfuse as the folder `bucket` beside the configs:
                       --workdir=bucket/runs/NAME
  --before COMMAND     run by bash on every worker first, e.g. to install gcsfuse or to mount a shared disk
  --runtime VERSION    software of the TPU VM (default: what belongs to the accelerator)
  --project PROJECT    (default: that of gcloud)
  --restarts N         how often to start again after a crash (default: 3); preemptions do not count
  --keep               do not delete the TPU at the end
  --poll SECONDS       how long to wait between looks (default: 30)
  --yes                do not ask
  --dry-run            print the commands of a run without incidents, run nothing

The workdir must be on a shared place: a URL (--workdir=gs://BUCKET/runs/NAME, which needs neither --bucket nor --before),
the mounted bucket, or a mounted disk. What is on the TPU is lost with it.
Example: launch/tpu.sh train base --zone us-west4-a --accelerator v5litepod-16 --spot --bucket speech -- \
           --config=configs/w2v2_base.py --workdir=bucket/runs/base --config.data.root=bucket/recordings
TEXT
}

read_options "zone accelerator bucket before runtime project restarts poll" "spot keep" "$@"
action=${words[0]:-} name=${words[1]:-}
[ ${#words[@]} -le 2 ] || wrong "'${words[2]}' stands before --; arguments of the training stand after it"
case $action in
  train | status | logs | stop | delete) ;;
  '') wrong "say what to do: train, status, logs, stop or delete" ;;
  *) wrong "'$action' is none of train, status, logs, stop, delete" ;;
esac
need_name "$name"
need_option zone "where the TPU is, e.g. --zone us-west4-a"
place=("--zone=${option[zone]}")
if [ -n "${option[project]:-}" ]; then place+=("--project=${option[project]}"); fi
need_number poll 30
need_number restarts 3
if [ "$action" = train ]; then
  need_option accelerator "the kind and size of the TPU, e.g. --accelerator v5litepod-16"
  need_training
  [ -z "${option[bucket]:-}" ] || option[bucket]=${option[bucket]#gs://}
  if [[ ${option[workdir]} != *://* ]]; then
    [ -n "${option[bucket]:-}${option[before]:-}" ] ||
      wrong "--bucket is needed (or --workdir=gs://BUCKET/runs/$name, or --before, to mount a shared disk): a workdir on" \
        "the TPU is lost with it"
    if [ -z "${option[before]:-}" ] && [[ ${option[workdir]} != bucket/* ]]; then
      wrong "--workdir=${option[workdir]} is not in the bucket; it begins with bucket/, e.g. bucket/runs/$name"
    fi
  fi
fi
need_tool gcloud "Install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), then: gcloud auth login"

# on WHICH COMMAND: the words that run a shell command on one worker or on all.
on() { words=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"); }

# worker WHICH ARGUMENT...: runs tpu_worker.sh there.
worker() {
  on "$1" "$(quoted bash "$folder/launch/tpu_worker.sh" "${@:2}")"
  run "${words[@]}"
}

# training_state ASSUMED: what tpu_worker.sh says of the first worker; lost where it cannot be reached.
training_state() {
  local file=$folder/launch/tpu_worker.sh text
  on 0 "if [ -e $file ]; then bash $file state; else echo never started; fi"
  text=$(ask "$1" "${words[@]}") || text=lost
  printf '%s\n' "${text##*$'\n'}"
}

# describe ASSUMED KIND FIELD: the state of the queued resource or of the TPU VM; ABSENT, or UNKNOWN with gcloud's words.
describe() {
  local text
  if text=$(ask "$1" gcloud compute tpus "$2" describe "$name" "${place[@]}" "--format=value($3)" 2>&1); then
    printf '%s\n' "${text##*$'\n'}"
  elif [[ $text == *NOT_FOUND* || $text == *"not found"* ]]; then
    echo ABSENT
  else
    say "gcloud says: $text"
    echo UNKNOWN
  fi
}

delete_tpu() {
  local text
  say "deleting the TPU $name"
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet || {
    text=$(describe ABSENT queued-resources state.state)
    [ "$text" = ABSENT ] || fail "the TPU $name could not be deleted and may cost money: try again: $script delete $name ${place[*]}"
  }
}

runtime() {
  case ${option[accelerator]} in
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v6e*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local command=(gcloud compute tpus queued-resources create "$name" "${place[@]}" "--node-id=$name")
  command+=("--accelerator-type=${option[accelerator]}" "--runtime-version=${option[runtime]:-$(runtime)}")
  if [ -n "${option[spot]:-}" ]; then command+=(--spot); fi
  say "asking for a TPU ${option[accelerator]}"
  run "${command[@]}" || fail "the TPU could not be asked for: gcloud says why above"
}

assumed=ABSENT # what a dry run takes for the state
mine=false     # whether this script has seen the TPU alive: who deletes it then means it

# ready: returns once the TPU is up; asks for it where it is absent or was taken away.
ready() {
  local state before=''
  while true; do
    state=$(describe "$assumed" queued-resources state.state)
    if [ "$state" = ACTIVE ]; then
      state=$(describe READY tpu-vm state)
      if [ "$state" = ABSENT ]; then state=TERMINATED; fi # the request is there, its TPU is not
    fi
    if [ "$state" != "$before" ]; then say "the TPU $name is $state"; fi
    case $state in
      READY)
        mine=true
        return
        ;;
      ABSENT)
        if $mine; then fail "the TPU $name was deleted by somebody else; nothing is started again"; fi
        create
        mine=true assumed=ACTIVE before=ABSENT
        continue
        ;;
      UNKNOWN) [ -n "$before" ] || $mine || fail "the state of $name is not known; see above" ;;
      FAILED)
        if [ "$before" != '' ]; then
          fail "the request failed: gcloud compute tpus queued-resources describe $name ${place[*]}"
        fi
        delete_tpu
        mine=false
        ;;
      SUSPENDED | PREEMPTED | TERMINATED)
        say "the TPU was taken away; asking for it again"
        delete_tpu
        mine=false
        ;;
    esac
    before=$state
    sleep "${option[poll]}"
  done
}

install_code() {
  local sources=() part
  for part in "${parts[@]}"; do sources+=("$root/$part"); done
  say "copying the code to all workers and installing it"
  on all "mkdir -p $folder"
  run "${words[@]}" &&
    run gcloud compute tpus tpu-vm scp --recurse "${sources[@]}" "$name:$folder/" "${place[@]}" --worker=all &&
    worker all prepare "${option[bucket]:-}" "${option[before]:-}"
}

leave() {
  if [ -n "${option[keep]:-}" ]; then
    say "the TPU $name is kept and costs money until: $script delete $name ${place[*]}"
  else
    delete_tpu
  fi
}

watch() {
  local crashes=0 started=false state
  trap 'say "no longer watching; the TPU $name runs on and costs money: the same command watches again,
  $script delete $name ${place[*]} ends it"; exit 130' INT TERM
  while true; do
    ready
    state=$(training_state "never started")
    if [ "$state" = lost ]; then
      $started || state="not been reached"
    elif ! $started || [[ $state != ended* ]]; then
      if [ "$state" != running ] && ! install_code; then
        state="not been installed"
      elif ! worker all start "${train[@]}"; then
        state="not started" # on some workers; those that run wait for the others
      else
        started=true
        worker 0 follow || true
        state=$(training_state "ended 0")
      fi
    fi
    case $state in
      "ended 0")
        say "training is complete"
        leave
        return
        ;;
      "ended stopped")
        say "training was stopped by a person and has saved; the TPU $name costs money until: $script delete $name ${place[*]}"
        return
        ;;
      running | lost) say "the first worker is $state: looking again" ;;
      "ended 143")
        say "training has saved after SIGTERM: starting it again"
        worker all end || true
        started=false
        ;;
      *)
        crashes=$((crashes + 1))
        if [ "$state" = "ended 2" ] || [ "$state" = "ended 3" ] || ((crashes > option[restarts])); then
          worker all log 40 || true
          leave
          fail "training has $state; the last lines of all workers stand above"
        fi
        say "training has $state: starting it again, $crashes of ${option[restarts]}"
        worker all end || true # a worker that still waits for the one that died would not join the new ones
        started=false
        ;;
    esac
    sleep "${option[poll]}"
  done
}

case $action in
  train)
    confirm "This starts a TPU ${option[accelerator]} in ${option[zone]}, which costs money until it is deleted"
    watch
    ;;
  status)
    run gcloud compute tpus queued-resources describe "$name" "${place[@]}"
    worker all state
    ;;
  logs) worker all log 1000 ;;
  stop)
    worker all stop
    say "saved and stopped; the TPU $name costs money until: $script delete $name ${place[*]}"
    ;;
  delete)
    state=$(describe ACTIVE queued-resources state.state)
    if [ "$state" = ABSENT ]; then
      say "nothing to do: there is no TPU $name in ${option[zone]}"
      exit 0
    fi
    if [ "$state" = ACTIVE ]; then
      worker all stop || say "the training could not be asked to save; its last checkpoint counts"
    fi
    delete_tpu
    say "deleted"
    ;;
esac
