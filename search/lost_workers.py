"""What a lost worker ends: a trial's, that trial; that of a study's last steps, the command.

Ray has retried what is its to retry by then, see `as_task`. Storage that refuses ends the command
as well.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import tune as tune_runs
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from search.failures import WORKER_RETRIES, reason_of_lost_task
from search.shared_files import SharedFilesError
from search.studies import StorageLost


class StepLost(SystemExit):  # noqa: N818  # no error of the program, but its end
    """A step after the trials could not be done: ends the process with this and exit code 1."""


def as_task(function: Callable[..., Any], resources: Mapping[str, float]) -> Any:
    """A function that Ray runs on a worker, on another one where that or its device fails.

    With Ray's `options` a process would keep its GPU's memory; so it serves one task that has one.
    """
    return ray.remote(
        num_cpus=resources["cpu"],
        num_gpus=resources["gpu"],
        max_retries=WORKER_RETRIES,
        retry_exceptions=[torch.AcceleratorError],
    )(function)


def scored(tasks: Any, who: str) -> Any:
    """What tasks that score clips return.

    Args:
        tasks: As `ray.get` takes them.
        who: Whose test it is, for the message.

    Raises:
        StepLost: Their workers died, their device broke, or storage refuses them; another error
            of the tasks themselves is raised as it is.
    """
    try:
        return ray.get(tasks)
    except RayError as error:
        reason = refusal_of(error)
        is_broken_device = isinstance(getattr(error, "cause", None), torch.AcceleratorError)
        if reason is None and isinstance(error, RayTaskError) and not is_broken_device:
            raise
        reason = reason or reason_of_lost_task(error)
    raise StepLost(
        f"{who}: the clips could not be scored: {reason}; repeat the command: trials and winner "
        "are recorded, and no outcome is yet"
    )


def refusal_of(error: Exception) -> str | None:
    """What shared storage refused a task, in one line; None if it failed for another reason."""
    cause = getattr(error, "cause", None)  # the text of `error` itself is the worker's traceback
    return str(cause) if isinstance(cause, SharedFilesError) else None


class _ActorManager(RayActorManager):  # type: ignore[misc]
    """Ray's, whose own (2.60) ends the run for any error that is neither an actor's nor a task's.

    `OutOfMemoryError`, of a worker that Ray killed before the system would have, is such a one.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(
            exception, (RayActorError, RayTaskError)
        ):
            # Its first line: what follows tells all memory of the node.
            text = str(exception).partition("\n")[0]
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {text}")
        super()._actor_task_failed(tracked_actor_task, exception)


class _Controller(TuneController):  # type: ignore[misc]
    """Tune's, whose own (2.60) fails a trial that it hands to a worker which died while idle.

    It hears of the loss twice, for the worker and for the task: the first puts the trial back into
    the queue, the second fails it. And who is put back there is given no worker any more, for it
    still counts as being handed over. It also counts a refusal of the shared storage as a loss.
    """

    def _actor_failed(self, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            # As if it ran: then only the failure of the task counts, which is told next.
            self._resetting_trials.remove(trial)
            self._unstage_trial_with_resources(trial)
            self._set_trial_status(trial, Trial.RUNNING)
        super()._actor_failed(tracked_actor, exception)

    def _process_trial_failure(self, trial: Trial, exception: Exception) -> None:
        if refusal_of(exception) is not None:
            trial.max_failures += 1  # no lost worker; `StorageStopper` limits these
        try:
            super()._process_trial_failure(trial, exception)
        except OSError as error:  # Tune keeps a file of each loss, in a temporary folder
            raise StorageLost(
                f"error: a lost worker could not be noted: {error}; mend it and repeat the "
                "command: what is recorded is safe"
            ) from error


def retry_lost_workers() -> None:
    """Have Tune treat every loss of a worker as one, for all runs of this process."""
    tune_controller.RayActorManager = _ActorManager
    tune_runs.TuneController = _Controller
