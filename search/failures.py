"""What each way of failing means for a trial. Who retries what, and where:

| what happens | trial ends as | retried |
|---|---|---|
| settings that do not fit, or break a limit of the space file | infeasible before it runs | another one is suggested |
| loss not finite, a crash in our code | FAIL, reason | no: the same settings would fail again |
| memory exhausted | infeasible, so that the sampler avoids its like; counted as failed | as below if the process was killed for it |
| a device fails in a way that leaves it unusable for the process (`torch.AcceleratorError`) | its worker is ended, then as for one that died | as below |
| the worker process or its node dies | continues from its last epoch on any node | by Tune, `WORKER_RETRIES` times, then FAIL |
| a machine is taken back with notice (`cluster/gpu.yaml`) | as above | as often as that happens |
| the shared storage refuses a trial (`search/shared_files.py`) for `PATIENCE_S`, half of `study.hang_minutes` at most, as a full disk does, or a folder that its node has not mounted | continues from its last stored epoch | once; then the search ends, the trial stays RUNNING |
| its checkpoint is cut short, or another study's | begins anew from the first epoch | at once |
| no report for `longest_silence_s` | its worker is killed, then as for one that died | as above, then FAIL "hung" |
| a training of the confirmation loses its worker, or its device fails as above | its finalist cannot win, reason | by Ray, `WORKER_RETRIES` times, and as often where it was killed for its memory |
| the shared storage refuses a training of the confirmation, or who scores clips | the search ends, no failure or outcome is recorded | when the command is repeated |
| a worker dies that scores the winner's or the finalists' clips, or its device fails as above | the search ends, no outcome is recorded | by Ray as above, then when the command is repeated |
| the study's own storage refuses a record for `PATIENCE_S` (`search/journal.py`, `postgres.py`) | stays RUNNING; the search ends | when the command is repeated |
| the driver is killed, interrupted or out of time | stays RUNNING in the storage | when the command is repeated |

An attempt is one execution of a trial: the first, one more for each worker that was lost, one more
for each search that takes it up again (`attempts` of the trial); only lost workers are limited, in
each search anew. The study ends early for storage that refuses, full disks included, and for
suggestions that all break a limit of the space file; never for trials that fail.
"""  # noqa: D205, D400, D415, E501

import math
import traceback

import torch

from mimimi_core.config import ConfigError
from mimimi_core.training import NonFiniteLossError

WORKER_RETRIES = 3
_TIMES_LONGEST = 20.0  # the longest epoch known
_LEAST_SILENCE_S = 3600.0

_OUT_OF_MEMORY = "out of memory"
_STORAGE = "storage"
# What Ray says of a worker that it killed before the system would have.
_KILLED_FOR_MEMORY = ("OutOfMemoryError", "running low on memory")


def is_out_of_memory(reason: str) -> bool:
    """Whether a trial failed for want of memory."""
    return reason.startswith(_OUT_OF_MEMORY)


def is_storage(reason: str) -> bool:
    """Whether a worker gave a trial up because the shared storage refused."""
    return reason.startswith(_STORAGE)


def longest_silence_s(stated_minutes: float | None, longest_epoch_s: float) -> float:
    """How long a trial that runs may report nothing before it is taken to hang.

    Args:
        stated_minutes: `study.hang_minutes`. Without it, many times the longest epoch known, an
            hour at least; and no limit while none is known, for a slow first epoch is honest.
        longest_epoch_s: Of the trials so far, 0 if none has reported.
    """
    if stated_minutes is not None:
        return 60 * stated_minutes
    if not longest_epoch_s:
        return math.inf
    return max(_LEAST_SILENCE_S, _TIMES_LONGEST * longest_epoch_s)


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line; the kind comes first so that failures can be grouped."""
    if isinstance(error, NonFiniteLossError):
        return f"non-finite: {error}"
    # Of what is refused to CUDA's libraries, torch says so in the message alone.
    is_refused = isinstance(error, RuntimeError) and "ALLOC_FAILED" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_refused:
        return f"{_OUT_OF_MEMORY}: {' '.join(str(error).split())}"
    if isinstance(error, ConfigError):
        return f"infeasible: {error}"
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({where[-1].filename.rsplit('/', 1)[-1]}:{where[-1].lineno})" if where else ""
    return f"crash: {type(error).__name__}: {' '.join(str(error).split())}{place}"


def reason_of_lost_task(error: Exception) -> str:
    """Why the last worker of a task was lost, in one line, from what Ray raises."""
    cause = getattr(error, "cause", None)  # what the task raised; else Ray tells of its process
    text = str(error) if cause is None else f"{type(cause).__name__}: {cause}"
    line = text.strip().partition("\n")[0]
    return f"{_kind_of_loss(type(error).__name__ + line)}: {line}"


def reason_of_loss(errors: str) -> str:
    """Why a worker was lost, in one line, from the file in which Ray collects a trial's errors.

    Indented lines, which tell a traceback or ids, and Ray's guesses about causes are left out.
    """
    last = errors.rpartition("Failure # ")[2].splitlines()[1:]
    lines = [line for line in last if line and not line[0].isspace()]
    for line in lines:  # torch's advice comes after the one that names the error
        _, name, error = line.partition("AcceleratorError: ")
        if name:
            return f"worker lost: {name}{error}"
    message = " ".join(lines)
    _, name, refusal = message.partition("SharedFilesError: ")
    if name:
        return f"{_STORAGE}: {refusal}"
    return f"{_kind_of_loss(message)}: {message.partition(' Some common causes include')[0]}"


def _kind_of_loss(message: str) -> str:
    is_for_memory = any(phrase in message for phrase in _KILLED_FOR_MEMORY)
    return _OUT_OF_MEMORY if is_for_memory else "worker lost"
