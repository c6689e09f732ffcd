# SPDX-License-Identifier: Apache-2.0
"""Several processes as one run: they start, stop and fail together.

`run_tpu.sh` sets PROMPT_TUNING_DISTRIBUTED=1 where there are several; on a TPU
or in a Slurm step JAX then finds out the rest, elsewhere it is told by
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Every process
computes the same program and makes the same decisions; the first alone prints,
and writes whatever is not a checkpoint, of which each writes its part.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import traceback

import jax
from jax.experimental import multihost_utils
import numpy as np

# A process that has not been heard of for so long is given up, and all others
# end. Collectives on a CPU notice a closed connection at once.
HEARTBEAT_TIMEOUT = 30  # Seconds.
# Exit code of a process whose peers have failed it; `timeout` and shells do not
# use it.
PEER_FAILED = 75  # EX_TEMPFAIL of sysexits.h: try again.


def initialize() -> None:
  """Joins the other processes, if there are some; the first call of JAX.

  Raises:
    ValueError: if a variable is not a number.
  """
  if os.environ.get("PROMPT_TUNING_DISTRIBUTED", "0") != "1":
    return
  jax.distributed.initialize(
    os.environ.get("JAX_COORDINATOR_ADDRESS"),
    _number("JAX_NUM_PROCESSES"),
    _number("JAX_PROCESS_ID"),
    heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
  )


def _number(name: str) -> int | None:
  """Reads a whole number from the environment; None if it is not there."""
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.isdecimal():
    raise ValueError(f"{name}={text!r} must be a whole number from 0 on")
  return int(text)


def is_first() -> bool:
  """Tells whether this process is the one that prints and writes."""
  return jax.process_index() == 0


@contextlib.contextmanager
def one_run() -> Iterator[None]:
  """Joins the other processes, and ends with them.

  All but the first are silent on stdout. Where a peer has failed, so that a
  collective cannot be completed, this one says so and ends at once, with exit
  code `PEER_FAILED`: there is nothing left that it could wait for.
  """
  initialize()
  if jax.process_count() == 1:
    yield
    return
  with contextlib.ExitStack() as stack:
    if not is_first():
      sink = stack.enter_context(open(os.devnull, "w"))
      stack.enter_context(contextlib.redirect_stdout(sink))
    try:
      yield
    except jax.errors.JaxRuntimeError:
      traceback.print_exc()
      _end(
        f"error: process {jax.process_index()} of {jax.process_count()} could"
        " not complete a computation, most likely because another process has"
        " ended, whose own output says why: start all of them again, and they"
        " continue from the newest checkpoint"
      )


def _end(message: str) -> None:
  """Ends this process without a word to the others."""
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Not sys.exit: JAX would wait for all processes to leave together.
  os._exit(PEER_FAILED)


def of_first(number: int) -> int:
  """Returns the number that the first process has; all of them call this."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def should_stop(sigterm: threading.Event, step: int) -> bool:
  """Tells whether all processes stop behind this step, as one had SIGTERM.

  Called by every process at every step. JAX's preemption service, which hears
  SIGTERM itself, has the processes agree on the next step that none has begun.

  Args:
    sigterm: that this process has received the signal; for a run of one.
    step: the number of steps taken.
  """
  if jax.process_count() == 1:
    return sigterm.is_set()
  return multihost_utils.reached_preemption_sync_point(step)
