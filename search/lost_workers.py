"""What a lost worker ends: a trial's, that trial; that of a study's last steps, the command.

Ray has retried what is its to retry by then.
"""

from typing import Any

import ray
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import tune as tune_runs
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from search.failures import reason_of_lost_task


class ScoringLost(SystemExit):  # noqa: N818  # no error of the program, but its end
    """Clips could not be scored: ends the process with this message and exit code 1."""


def scored(tasks: Any, who: str) -> Any:
    """What tasks that score clips return.

    Args:
        tasks: As `ray.get` takes them.
        who: Whose test it is, for the message.

    Raises:
        ScoringLost: Their workers died; an error of the tasks themselves is raised as it is.
    """
    try:
        return ray.get(tasks)
    except RayTaskError:
        raise
    except RayError as error:
        raise ScoringLost(
            f"{who}: the clips could not be scored: {reason_of_lost_task(error)}; repeat the "
            "command: trials and winner are recorded, and no outcome is yet"
        ) from None


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
    still counts as being handed over.
    """

    def _actor_failed(self, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            # As if it ran: then only the failure of the task counts, which is told next.
            self._resetting_trials.remove(trial)
            self._unstage_trial_with_resources(trial)
            self._set_trial_status(trial, Trial.RUNNING)
        super()._actor_failed(tracked_actor, exception)


def retry_lost_workers() -> None:
    """Have Tune treat every loss of a worker as one, for all runs of this process."""
    tune_controller.RayActorManager = _ActorManager
    tune_runs.TuneController = _Controller
