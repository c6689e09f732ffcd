#!/usr/bin/env bash
# Trains on a TPU VM, or on any host with JAX: checks what it needs, prints the
# command that it runs, and passes every flag on.
#
#   MODEL_DIR=gs://bucket/run ./run_tpu.sh --gin_file=gin/models/t5_1_1_xl.gin ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ $# -eq 0 ]]; then
  echo "usage: [MODEL_DIR=DIR] [PYTHON=python3] $0 --gin_file=FILE ..." >&2
  exit 2
fi
python=${PYTHON:-python3}
if ! "$python" -c 'import prompt_tuning' 2>/dev/null; then
  echo "error: $python cannot import prompt_tuning: run '$python -m pip install -e .[tpu]' first" >&2
  exit 2
fi
# Compiled programs are kept, so that a restarted run starts at once.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/prompt_tuning}
flags=("$@")
if [[ -n ${MODEL_DIR:-} ]]; then
  flags+=("--gin.MODEL_DIR='$MODEL_DIR'")
fi
command=("$python" -m prompt_tuning.train "${flags[@]}")
printf 'running:'
printf ' %q' "${command[@]}"
printf '\n'
exec "${command[@]}"
