# SPDX-License-Identifier: Apache-2.0
"""Writes the tokenised cache of a task, to train from without TensorFlow.

    python -m prompt_tuning.cache_task \
      --gin_file=gin/runs/seqio.gin --gin_file=gin/runs/cache.gin \
      --gin.MIXTURE_OR_TASK_NAME=... --gin.TASK_FEATURE_LENGTHS=... \
      --gin.CACHE_DIR=...

The flags of the training command do as well, with `gin/runs/cache.gin` and
CACHE_DIR added.
"""

from collections.abc import Callable

from prompt_tuning import cache, configuration, task_data


def cache_task(
  *, cache_dir: str, load_data: Callable[[], task_data.TaskData]
) -> None:
  """Reads a task as training would, and writes it.

  Args:
    cache_dir: the folder to write.
    load_data: reads the task.
  """
  print(cache.write(cache_dir, load_data()), flush=True)


if __name__ == "__main__":
  configuration.run("prompt_tuning.cache_task.cache_task")
