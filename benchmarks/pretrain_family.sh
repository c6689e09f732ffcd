#!/usr/bin/env bash
# Makes the family of docs/pretraining.md: one cache of the text, then, for each
# size, pretraining, LM adaptation and a bfloat16 copy of either base.
#
#   benchmarks/pretrain_family.sh 'text/train*.txt.xz' 'text/validation*.txt.xz' \
#     OUTPUT [SIZE...]
#
# The same command again goes on where it was stopped.
set -euo pipefail

if (( $# < 3 )); then
  echo "usage: $0 TRAIN_FILES VALIDATION_FILES OUTPUT [1m 4m 16m 60m]" >&2
  exit 2
fi
train_files=$1 validation_files=$2 output=$3
shift 3
sizes=("$@")
if (( ${#sizes[@]} == 0 )); then sizes=(1m 4m 16m 60m); fi

if [[ ! -f $output/corpus/manifest.json ]]; then
  python -m prompt_tuning.cache_task \
    --gin_file=gin/runs/text_files.gin --gin_file=gin/runs/cache.gin \
    --gin.TRAIN_FILES="'$train_files'" \
    --gin.VALIDATION_FILES="'$validation_files'" \
    --gin.CACHE_DIR="'$output/corpus'"
fi
for size in "${sizes[@]}"; do
  python -m prompt_tuning.train \
    --gin_file="gin/models/english_$size.gin" --gin_file=gin/runs/pretrain.gin \
    --gin.CACHE_DIR="'$output/corpus'" --gin.MODEL_DIR="'$output/$size/span'"
  python -m prompt_tuning.train \
    --gin_file="gin/models/english_$size.gin" --gin_file=gin/runs/lm_adapt.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/$size/span/checkpoint_7000'" \
    --gin.CACHE_DIR="'$output/corpus'" --gin.MODEL_DIR="'$output/$size/lm'"
  for base in span/checkpoint_7000 lm/checkpoint_7700; do
    copy=$output/${size}_${base%/*}.safetensors
    if [[ ! -f $copy ]]; then
      python -m prompt_tuning.convert --from="$output/$size/$base" \
        --to="$copy" --format=safetensors --dtype=bfloat16
    fi
  done
done
