"""Reasons: one line, the kind first."""

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayError, WorkerCrashedError

from mimimi_core.config import ConfigError
from mimimi_core.training import NonFiniteLossError
from search.failures import is_storage, reason_of, reason_of_loss, reason_of_lost_task
from tests.doubles import LOSS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteLossError("train_loss is nan in epoch 1"), "non-finite: train_loss is nan"),
        (torch.OutOfMemoryError("CUDA out of\nmemory"), "out of memory: CUDA out of memory"),
        (MemoryError(), "out of memory: "),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
            "out of memory: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "out of memory: cuFFT error"),
        (RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"), "crash: RuntimeError: cuFFT error"),
        (
            ConfigError("frontend.hop must be <= frontend.n_fft (512), got 1024"),
            "infeasible: frontend.",
        ),
        (ValueError("two\nlines"), "crash: ValueError: two lines (test_failures.py:"),
    ],
)
def test_each_kind_of_failure_has_its_word(error: Exception, reason: str) -> None:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        found = reason_of(raised)
    assert found.startswith(reason)
    assert "\n" not in found


def test_the_last_loss_of_a_worker_is_told_in_one_line() -> None:
    errors = f"Failure # 1 (occurred at noon)\n{LOSS}\nFailure # 2 (occurred at one)\n"
    errors += (
        "ray::AnalyticTrial.train() (pid=7)\n  File x.py, line 3\n    raise y\nKeyError: 'pack'\n"
    )
    reason = reason_of_loss(errors)
    assert reason == "worker lost: ray::AnalyticTrial.train() (pid=7) KeyError: 'pack'"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OutOfMemoryError("2 workers were killed\nbecause"),
            "out of memory: 2 workers were killed",
        ),
        (WorkerCrashedError(), "worker lost: The worker died unexpectedly"),
    ],
)
def test_the_last_loss_of_a_task_is_told_in_one_line(error: RayError, reason: str) -> None:
    found = reason_of_lost_task(error)
    assert found.startswith(reason)
    assert "\n" not in found


def test_a_device_that_broke_is_told_without_torch_s_advice() -> None:
    errors = "Failure # 1 (occurred at noon)\n\x1b[36mray::TrialRunner.train()\x1b[39m (pid=7)\n"
    errors += "  File x.py, line 3\ntorch.AcceleratorError: CUDA error: launch failure\n"
    errors += "CUDA kernel errors might be asynchronously reported at some other API call.\n"
    reason = reason_of_loss(errors)
    assert reason == "worker lost: AcceleratorError: CUDA error: launch failure"


def test_a_refusal_of_the_storage_is_told_apart_from_a_lost_worker() -> None:
    errors = "Failure # 1 (occurred at noon)\n\x1b[36mray::TrialRunner.train()\x1b[39m (pid=7)\n"
    errors += "  File x.py, line 3\nsearch.shared_files.SharedFilesError: s3://b must let\n"
    assert reason_of_loss(errors) == "storage: s3://b must let"
    assert is_storage(reason_of_loss(errors))
    assert not is_storage(reason_of_loss(f"Failure # 1 (occurred at noon)\n{LOSS}\n"))
