#!/usr/bin/env bash
# Trains on a TPU VM, on every worker of a TPU pod slice, on a GPU host or in a
# Slurm step: checks what it needs, prints the command it runs, passes every flag
# on to it.
#
#   ./run_tpu.sh --gin_file=gin/models/t5_1_1_xl.gin --gin_file=... --gin.NAME=...
#   srun ./run_tpu.sh --gin_file=...                      # each task of a step
#   DISTRIBUTED=1 ./run_tpu.sh --gin_file=...             # each worker of a slice
#   COORDINATOR_ADDRESS=10.0.0.1:1234 NUM_PROCESSES=2 PROCESS_ID=0 \
#     ./run_tpu.sh --gin_file=...                         # each of several hosts
#
# Environment, all of it optional:
#   PROGRAM      train, eval or infer; the default is train
#   PYTHON       the interpreter; the default is python3
#   MODEL_DIR    the same as --gin.MODEL_DIR, without its inner quotes
#   DISTRIBUTED  1: several processes that JAX finds itself, 0: one; the default is
#                to look whether this is a Slurm step or a slice of several workers
#   COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID
#                host and port of process 0, how many there are, and which this is
#   JAX_COMPILATION_CACHE_DIR
#                where compiled programs are kept, for a restart to begin at once
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

# Prints the comment at the head of this file.
usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
}

# Finds out whether there are several processes, and tells the program.
set_up_processes() {
  local address=${COORDINATOR_ADDRESS:-} number=${NUM_PROCESSES:-}
  local id=${PROCESS_ID:-} distributed=${DISTRIBUTED:-}
  if [[ -n $address$number$id ]]; then
    [[ $address =~ ^[^:[:space:]]+:[0-9]+$|^\[.+\]:[0-9]+$ ]] ||
      fail "COORDINATOR_ADDRESS='$address' must be host:port of process 0"
    [[ $number =~ ^[1-9][0-9]*$ ]] ||
      fail "NUM_PROCESSES='$number' must be a number, 1 or more"
    [[ $id =~ ^(0|[1-9][0-9]*)$ && $id -lt $number ]] ||
      fail "PROCESS_ID='$id' must be a number below NUM_PROCESSES=$number"
    export JAX_COORDINATOR_ADDRESS=$address
    export JAX_NUM_PROCESSES=$number JAX_PROCESS_ID=$id
    distributed=1
  elif [[ -z $distributed ]]; then
    distributed=0
    if [[ -n ${SLURM_STEP_NODELIST:-} && ${SLURM_NTASKS:-1} -gt 1 ]] ||
      [[ ${TPU_WORKER_HOSTNAMES:-} == *,* ]]; then
      distributed=1
    fi
  fi
  [[ $distributed == [01] ]] || fail "DISTRIBUTED='$distributed' must be 0 or 1"
  export PROMPT_TUNING_DISTRIBUTED=$distributed
}

main() {
  local python=${PYTHON:-python3} program=${PROGRAM:-train}
  if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    usage
    [[ $# -gt 0 ]] || exit 2
    exit
  fi
  [[ $program =~ ^(train|eval|infer)$ ]] ||
    fail "PROGRAM='$program' must be train, eval or infer"
  [[ " $*" == *" --gin_file"* ]] ||
    fail "no gin file: add --gin_file=gin/runs/demo.gin or your own"
  command -v "$python" >/dev/null ||
    fail "PYTHON='$python' is not found: name a Python 3.11 or newer"
  "$python" -c 'import prompt_tuning' ||
    fail "$python cannot import prompt_tuning: run $python -m pip install -e '.[tpu]' (on a GPU '.[cuda]')"
  set_up_processes
  local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/prompt_tuning
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache}
  local command=("$python" -m "prompt_tuning.$program" "$@")
  if [[ -n ${MODEL_DIR:-} ]]; then
    command+=("--gin.MODEL_DIR='$MODEL_DIR'")
  fi
  printf 'running:'
  printf ' %q' "${command[@]}"
  printf '\n'
  exec "${command[@]}"
}

main "$@"
