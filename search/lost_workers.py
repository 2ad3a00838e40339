"""Makes Tune lose a trial's worker, and not the whole search, to whatever Ray ends workers for."""

from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution import tune_controller


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


def retry_lost_workers() -> None:
    """Have Tune treat every loss of a worker as one, for all runs of this process."""
    tune_controller.RayActorManager = _ActorManager
