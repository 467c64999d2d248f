#!/usr/bin/env bash
# Measures what docs/performance.md asks of one accelerator, the most valuable first, on a machine that may be bare:
#
#   launch/studies/accelerator.sh pack                  # with a network: the small wheels that such a machine lacks
#   launch/studies/accelerator.sh --out runs/accelerator [--minutes 8] [--dry]
#
# The wheels lie in .wheels/ (2 MB, for Python 3.12 on x86-64 Linux unless PACK_PYTHON=3.13 or so says otherwise) and
# are used from there where they are. What else is needed: jax for the device, flax, optax, orbax-checkpoint; torch and
# transformers for the comparison. What the rows are: launch/studies/accelerator.py --help.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$root/.wheels
python=${PYTHON:-python3}

if [ "${1:-}" = pack ]; then
  platforms=()
  for tag in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${tag}_x86_64")
  done
  "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp -d "$wheels" "${platforms[@]}" \
    --python-version "${PACK_PYTHON:-3.12}" -c "$root/requirements/constraints.txt" \
    ml-collections soundfile soxr cffi pycparser google-crc32c tensorboardx
  du -sh "$wheels"
  exit
fi
if compgen -G "$wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" "$root/launch/studies/accelerator.py" "$@"
