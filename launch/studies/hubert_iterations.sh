#!/usr/bin/env bash
# Two iterations of HuBERT (Hsu et al. 2021): units of MFCC, train, units of a layer of that model, train.
#
#   launch/studies/hubert_iterations.sh RECORDINGS OUT [flags of both trainings, such as --config.data.device_seconds=87.5]
#
# The same command goes on after a stop. What the paper has for LibriSpeech are the defaults of these variables:
#   CONFIG=configs/hubert_base.py  CLUSTERS=100,500  LAYER=6  STEPS=250000,400000  SHARE=0.1  SOURCE=folder
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$1 out=$2
shift 2
config=${CONFIG:-$(cd "$(dirname "$0")/../.." && pwd)/configs/hubert_base.py}
clusters=${CLUSTERS:-100,500} steps=${STEPS:-250000,400000}
data=(--source "${SOURCE:-folder}" --root "$root")
python=${PYTHON:-python3}

units() { # NAME CLUSTERS, then what is clustered, the run first
  local name=$1 count=$2 run=()
  shift 2
  if [ "$1" = --run ]; then run=(--run "$2"); fi
  "$python" -m w2v_jax.units fit "$@" "${data[@]}" --clusters "$count" --share "${SHARE:-0.1}" --out "$out/$name"
  "$python" -m w2v_jax.units label --model "$out/$name" "${run[@]}" "${data[@]}" --out "$out/$name-units"
}

train() { # NAME UNITS CLUSTERS SAMPLES-PER-UNIT STEPS, then flags
  local name=$1 labels=$2 count=$3 hop=$4 updates=$5
  shift 5
  "$python" -m w2v_jax.train --config="$config" --workdir="$out/$name" --config.data.name="${SOURCE:-folder}" \
    --config.data.root="$root" --config.data.targets="$out/$labels" --config.data.targets_hop="$hop" \
    --config.loss.classes="$count" --config.train.steps="$updates" "$@"
}

units mfcc "${clusters%,*}" --features mfcc
train first mfcc-units "${clusters%,*}" 160 "${steps%,*}" "$@"
units layer "${clusters#*,}" --run "$out/first" --layer "${LAYER:-6}"
train second layer-units "${clusters#*,}" 320 "${steps#*,}" "$@"
