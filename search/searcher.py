"""The bridge between Tune, which runs trials, and the Optuna studies, which are the truth."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher, SearchGenerator

from search.failures import is_out_of_memory
from search.schedulers import StudyScheduler, furthest
from search.studies import TypeStudy
from search.views import paused_after

Config = dict[str, Any]


class Observer(Protocol):
    """Whoever shows or logs trials; called in the driver after the storage was written."""

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        """A trial started, reported an epoch or ended."""


class StudySearcher(Searcher):  # type: ignore[misc]
    """Serves all machine types from one queue and books every ending correctly.

    Args:
        studies: One per machine type.
        n_trials: Asked per machine type, those of earlier runs included.
        build_config: (machine type, trial) -> configuration of the trainable.
        scheduler: Knows which trials it stopped.
        slots: How many trials may exist that are not finished; asked anew each time, so that the
            search follows a growing cluster and still suggests late.
        parallel: Most trials of a machine type at once; None leaves it to the slots.
        finalists: Complete trials per machine type for which the best paused ones go on at the end.
        observers: Told of every change.
    """

    def __init__(
        self,
        studies: Mapping[str, TypeStudy],
        *,
        n_trials: int,
        build_config: Callable[[str, FrozenTrial], Config],
        scheduler: StudyScheduler,
        slots: Callable[[], int],
        parallel: int | None = None,
        finalists: int = 1,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        super().__init__()
        self._studies, self._n_trials = dict(studies), n_trials
        self._build_config, self._scheduler = build_config, scheduler
        self._slots, self._parallel, self._observers = slots, parallel, observers
        self._finalists = finalists
        self._live: dict[str, tuple[str, int]] = {}  # Tune's trial id -> (machine type, number)
        self._unfinished: list[tuple[str, int]] = []
        for machine_type, study in self._studies.items():
            for trial in study.trials():
                if trial.state == TrialState.RUNNING and not paused_after(trial):
                    self._unfinished.append((machine_type, trial.number))

    def suggest(self, trial_id: str) -> Config | str | None:
        """A configuration, None while all slots are taken, or FINISHED."""
        wanting = self._wanting()
        self._retire(wanting)
        if not self._unfinished and not wanting and not self._may_go_on():
            return str(Searcher.FINISHED)
        if not self._has_room():
            return None
        found = self._resume() or self._go_on(wanting) or self._ask(wanting)
        if found is None:
            return None
        machine_type, trial = found
        self._live[trial_id] = (machine_type, trial.number)
        self._notify(machine_type, trial)
        return self._build_config(machine_type, trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store an epoch."""
        machine_type, number = self._live[trial_id]
        self._record(machine_type, number, result)
        self._notify(machine_type, self._studies[machine_type].trial(number))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Store the last epoch and how the trial ended.

        Tune does not call this for trials that the end of the run cuts off: they stay RUNNING in
        the storage and are taken up by the next one.
        """
        machine_type, number = self._live[trial_id]
        study = self._studies[machine_type]
        losses = self._scheduler.losses.pop(trial_id, [])
        if error:
            self._fail(study, number, losses[-1])
        elif result and "failure" in result:
            self._fail(study, number, result["failure"])
        elif result and not math.isfinite(result["objective"]):
            reason = f"non-finite: objective {result['objective']} in epoch {result['epoch']}"
            study.finish(number, TrialState.FAIL, reason=reason)
        elif result:
            is_stopped = trial_id in self._scheduler.stopped
            if is_stopped:  # before the epoch is there, which the next run would take for judged
                study.note_stop(number, result["epoch"])
            self._record(machine_type, number, result)
            if result["is_final"]:
                study.finish(number, TrialState.COMPLETE, value=result["objective"])
            elif is_stopped:
                reason = f"stopped by the scheduler after epoch {result['epoch']}"
                study.finish(number, TrialState.PRUNED, reason=reason)
            elif trial_id in self._scheduler.paused:
                study.pause(number)
        del self._live[trial_id]
        self._notify(machine_type, study.trial(number))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher to restore it; ours is made anew from the storage instead."""
        return {}

    def _has_room(self) -> bool:
        """Whether there may be a further trial: one per slot, and one to take the next free slot.

        A suggestion may take seconds, so it is made while all slots train. A single one waits for
        it: there, what a trial knows of its predecessors must depend on no timing.
        """
        n_slots = self._slots()
        is_ahead = n_slots > 1 and len(self._live) == n_slots and not self._scheduler.n_waiting
        return len(self._live) < n_slots or is_ahead

    def _wanting(self) -> list[str]:
        """Machine types that have not had all their trials, the one with the fewest first."""
        counts = {name: len(study.trials()) for name, study in self._studies.items()}
        left = [
            name
            for name, study in self._studies.items()
            if counts[name] < self._n_trials and not study.is_exhausted
        ]
        return sorted(left, key=lambda name: counts[name])

    def _may_go_on(self) -> bool:
        """Whether a trial is paused, or runs and may pause yet."""
        return any(map(self._paused, self._studies)) or (
            self._scheduler.pauses and bool(self._live)
        )

    def _paused(self, machine_type: str) -> list[FrozenTrial]:
        if not self._scheduler.pauses:  # asked in every turn of Tune's loop, so it must cost little
            return []
        return [t for t in self._studies[machine_type].trials() if paused_after(t)]

    def _may_start(self, machine_type: str) -> bool:
        """Whether fewer trials of a machine type run than `parallel` allows."""
        n_live = sum(name == machine_type for name, _ in self._live.values())
        return self._parallel is None or n_live < self._parallel

    def _next_paused(self, machine_type: str, wanting: list[str]) -> int | None:
        """The paused trial of a type that goes on next; None if they all have to wait.

        One goes on early, so that a search which is cut off by its time has a complete trial. When
        there are no new trials any more, the best go on until there are enough finalists.
        """
        study, paused = self._studies[machine_type], self._paused(machine_type)
        if not paused:
            return None
        if numbers := self._scheduler.due(study):
            return numbers[0]
        is_early = machine_type in wanting
        if is_early and len(paused) < self._scheduler.least_rivals:
            return None
        live = [study.trial(number) for name, number in self._live.values() if name == machine_type]
        on_their_way = study.count("complete") + sum("paused" in t.user_attrs for t in live)
        return furthest(paused) if on_their_way < (1 if is_early else self._finalists) else None

    def _go_on(self, wanting: list[str]) -> tuple[str, FrozenTrial] | None:
        """A paused trial that may go on."""
        for machine_type, study in self._studies.items():
            if self._may_start(machine_type):
                number = self._next_paused(machine_type, wanting)
                if number is not None:
                    return machine_type, study.go_on(number)
        return None

    def _retire(self, wanting: list[str]) -> None:
        """End the paused trials of types in which nothing can let one on any more."""
        for machine_type, study in self._studies.items():
            running = [name for name, _ in [*self._live.values(), *self._unfinished]]
            if machine_type in [*wanting, *running]:
                continue
            if self._next_paused(machine_type, wanting) is not None:
                continue
            for trial in self._paused(machine_type):
                reason = "stopped by the scheduler: others were better where it had paused"
                ended = study.finish(trial.number, TrialState.PRUNED, reason=reason)
                self._notify(machine_type, ended)

    def _ask(self, wanting: list[str]) -> tuple[str, FrozenTrial] | None:
        """A new trial of the first type that may start one now."""
        for machine_type in wanting:
            study = self._studies[machine_type]
            if self._may_start(machine_type) and study.can_ask():
                trial = study.ask()
                if trial is not None:
                    return machine_type, trial
        return None

    def _fail(self, study: TypeStudy, number: int, reason: str) -> None:
        if is_out_of_memory(reason):
            study.finish_out_of_memory(number, reason)
        else:
            study.finish(number, TrialState.FAIL, reason=reason)

    def _resume(self) -> tuple[str, FrozenTrial] | None:
        """A trial that a killed search left, of the first type that may run one more now."""
        for machine_type, number in self._unfinished:
            if self._may_start(machine_type):
                self._unfinished.remove((machine_type, number))
                return machine_type, self._studies[machine_type].resume(number)
        return None

    def _record(self, machine_type: str, number: int, result: dict[str, Any]) -> None:
        """Store an epoch; Tune hands results over flattened."""
        metrics = {
            key.removeprefix("metrics/"): value
            for key, value in result.items()
            if key.startswith("metrics/")
        }
        study = self._studies[machine_type]
        study.record_epoch(number, result["epoch"], metrics, result["objective"])

    def _notify(self, machine_type: str, trial: FrozenTrial) -> None:
        for observer in self._observers:
            observer.on_trial(machine_type, trial)


class SnapshotFreeGenerator(SearchGenerator):  # type: ignore[misc]
    """Hands a searcher's suggestions to Tune and keeps no copy of it on disk.

    Tune copies its snapshots while it writes the next one, and reports the temporary file that is
    gone by then as an error. Nobody reads them: the storage has it all.
    """

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Write nothing."""


Value = TypeVar("Value", int, float)


def cached(read: Callable[[], Value], seconds: float) -> Callable[[], Value]:
    """Call `read` at most once in so many seconds: the control loop asks far more often."""
    value, expires = read(), time.monotonic() + seconds

    def get() -> Value:
        nonlocal value, expires
        if time.monotonic() >= expires:
            value, expires = read(), time.monotonic() + seconds
        return value

    return get
