#!/usr/bin/env bash
# What tpu.sh runs on each worker of a TPU: tpu_worker.sh prepare|start|state|follow|log|stop|end. It stands alone.
# Beside the folder of the code it keeps: lock (held while training runs), pid, exit (its exit code), log, venv.
set -euo pipefail
cd "$(dirname "$0")/.."

running() { ! flock --nonblock ../lock true; }

case ${1:-} in
  prepare) # BUCKET COMMAND: either may be empty
    [ -z "$3" ] || bash -c "$3"
    if [ -n "$2" ] && ! mountpoint --quiet bucket; then
      if ! command -v gcsfuse >/dev/null; then
        echo "error: gcsfuse is not installed on this worker: install it by --before 'COMMAND'" \
          "(https://cloud.google.com/storage/docs/cloud-storage-fuse/install)" >&2
        exit 1
      fi
      mkdir -p bucket
      # Checkpoints become whole by renaming their folder, and every worker must see at once what another has written.
      gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$2" bucket
    fi
    if [ ! -x ../venv/bin/python ]; then
      PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv # a TPU VM may have an older Python than 3.11
      python3 -m uv venv --quiet --python 3.11 ../venv
    fi
    python3 -m uv pip install --quiet --python ../venv/bin/python --constraint requirements/constraints.txt \
      --editable '.[tpu,gcs]'
    ;;
  start) # TRAINING...
    exec 9>>../lock
    if ! flock --nonblock 9; then
      echo "training runs already"
      exit 0
    fi
    rm -f ../pid ../exit ../stopped
    setsid bash launch/tpu_worker.sh train "${@:2}" >>../log 2>&1 </dev/null & # it holds the lock from here on
    exec 9>&-
    for _ in {1..100}; do
      [ ! -s ../pid ] || break
      sleep 0.1
    done
    echo "training started"
    ;;
  train) # what `start` leaves running
    echo "tpu_worker: $(date): starting"
    ../venv/bin/python -m w2v_jax.train "${@:2}" --distributed &
    echo $! >../pid
    code=0
    wait $! || code=$?
    echo "tpu_worker: $(date): ended with exit code $code"
    echo "$code" >../exit
    ;;
  state)
    if running; then
      echo running
    elif [ -e ../stopped ]; then
      echo "ended stopped"
    elif [ -s ../exit ]; then
      echo "ended $(cat ../exit)"
    elif [ -e ../log ]; then
      echo "ended without a word" # the machine went down
    else
      echo "never started"
    fi
    ;;
  follow) # shows the log until training ends
    tail --lines=20 --follow=name --pid="$(cat ../pid)" ../log
    ;;
  log) # LINES
    echo "$(hostname):"
    tail --lines="$2" ../log
    ;;
  stop) # SIGTERM, and waits until the training has saved
    if running; then
      touch ../stopped
      kill -TERM "$(cat ../pid)"
      if ! flock --timeout 600 ../lock true; then
        echo "error: training has not ended within 600 s of SIGTERM" >&2
        exit 1
      fi
    fi
    echo "training does not run"
    ;;
  end) # what is left of a training that has ended elsewhere
    flock --timeout "${2:-120}" ../lock true || kill -KILL "$(cat ../pid)"
    ;;
  *)
    echo "usage: tpu_worker.sh prepare|start|state|follow|log|stop|end; tpu.sh runs it" >&2
    exit 2
    ;;
esac
