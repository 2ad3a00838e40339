"""What the storage of a study tells: trials, costs, fresh seeds, the winner. Reads, writes nothing.

No lock is taken, neither the study's nor the journal's, so a running search is not disturbed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search.rank_correlation import RankCorrelation, spearman
from search.storages import JOURNAL, noted_uri, require_postgres
from search.studies import (
    EPOCH,
    FINALISTS,
    StudyError,
    ending_of,
    held_hours,
    hours_unit,
    never_ran,
)

STATES = ("complete", "pruned", "infeasible", "failed", "running", "paused", "waiting")
LABEL_FREE = ("id_swap_auc", "normal_log_likelihood")  # figures that need no labelled anomaly
_CONFIRMATION = "confirmation/"  # note of one fresh seed of a finalist, "confirmation/3/0"


class ReportError(ValueError):
    """There is nothing to report on."""


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """One trial as it is reported."""

    number: int
    state: str  # of STATES; infeasible is what broke a limit and never ran
    reason: str
    params: dict[str, Any]  # fixed ones included
    distributions: dict[str, BaseDistribution]
    curve: dict[int, float]  # objective by epoch
    value: float | None  # of a complete trial, else its objective after its last epoch
    second: float | None
    metrics: dict[str, float]  # of its last epoch
    seconds: float  # of its epochs whose time is recorded
    n_timed: int  # how many those are
    held: Mapping[str, float]  # by them, see `held_hours`
    attempts: int
    started: datetime | None
    ended: datetime | None

    @property
    def epochs(self) -> int:
        """Last epoch that was reported; 0 if none."""
        return max(self.curve, default=0)


@dataclass(frozen=True, kw_only=True)
class SeedFacts:
    """What fresh seeds made of a finalist."""

    number: int
    values: tuple[float, ...]
    failures: tuple[str, ...]
    n_timed: int = 0  # seeds whose time is recorded
    held: Mapping[str, float] = field(default_factory=dict)  # by those, see `held_hours`

    @property
    def mean(self) -> float | None:
        """None if no seed got to its end."""
        return float(np.mean(self.values)) if self.values else None


class Rung(NamedTuple):
    """What became of the trials that reached an epoch."""

    epoch: int
    reached: int
    went_on: int
    ended: Mapping[str, int]  # state -> trials whose last epoch so far this is


@dataclass(frozen=True, kw_only=True)
class TypeFacts:
    """The study of one machine type."""

    machine_type: str
    objective: str
    second_objective: str | None
    n_epochs: int | None  # of a trial that runs to its end
    resources: Mapping[str, float]
    trials: tuple[TrialFacts, ...]
    finalists: tuple[SeedFacts, ...]
    outcome: Mapping[str, Any]  # as `search.conclude` notes it; empty before that
    systems: Sequence[Mapping[str, Any]] = ()  # as `search.finalists` notes them
    n_chosen_from: int | None = None  # complete trials then; None in notes of earlier versions

    def of_state(self, *states: str) -> list[TrialFacts]:
        """Trials by number."""
        return [trial for trial in self.trials if trial.state in states]

    def trial(self, number: int) -> TrialFacts:
        """One trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state; every state is there."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in STATES}

    @property
    def best(self) -> TrialFacts | None:
        """The complete trial with the highest objective; of equals, the earlier."""
        return next(iter(self.complete), None)

    @property
    def complete(self) -> list[TrialFacts]:
        """The complete trials, best first; of equals, the earlier."""
        return sorted(self.of_state("complete"), key=lambda t: (-(t.value or 0.0), t.number))

    @property
    def winner(self) -> int | None:
        """Number of the trial that met the test; None before that."""
        number = self.outcome.get("winner")
        return None if number is None else int(number)

    @property
    def winner_seeds(self) -> SeedFacts | None:
        """Fresh seeds of the winner; None if there is none, or if it stands without them."""
        if self.winner is None or not self.outcome.get("is_confirmed", True):
            return None
        return self.seeds(self.winner)

    def seeds(self, number: int) -> SeedFacts | None:
        """Fresh seeds of a trial; None if it was no finalist."""
        return next((s for s in self.finalists if s.number == number), None)

    @property
    def flattery(self) -> float | None:
        """By how much the search's best value exceeds the mean of the same trial's fresh seeds."""
        best = self.best
        seeds = self.seeds(best.number) if best else None
        if best is None or best.value is None or seeds is None or seeds.mean is None:
            return None
        return best.value - seeds.mean

    @property
    def cost_unit(self) -> str:
        """Name of the unit of cost; of both units if it ran now with a GPU and now without."""
        held = [trial.held for trial in self.trials] + [seeds.held for seeds in self.finalists]
        return hours_unit(set().union(*held), self.resources)

    def cost(self, trials: Sequence[TrialFacts]) -> float | None:
        """What trials cost in `cost_unit`; None if no epoch of theirs has a time."""
        if not any(trial.n_timed for trial in trials):
            return None
        return sum(hours for trial in trials for hours in trial.held.values())

    @property
    def confirmation_cost(self) -> float | None:
        """What the fresh seeds cost in `cost_unit`; None if there are none, or one has no time."""
        n_timed = sum(seeds.n_timed for seeds in self.finalists)
        if not n_timed or n_timed < sum(len(seeds.values) for seeds in self.finalists):
            return None
        return sum(hours for seeds in self.finalists for hours in seeds.held.values())

    @property
    def saved(self) -> float | None:
        """At most what the pruned trials would have cost beyond what they did.

        Each goes on at its own mean pace up to the last epoch; some would have failed or stopped
        of themselves before that. None if an epoch of theirs has no time.
        """
        pruned = [trial for trial in self.of_state("pruned") if trial.epochs]
        if self.n_epochs is None or not pruned or any(t.n_timed < t.epochs for t in pruned):
            return None
        return sum((self.n_epochs - t.epochs) * sum(t.held.values()) / t.n_timed for t in pruned)

    def rungs(self) -> list[Rung]:
        """One per epoch, from the first to the last that any trial reached."""
        last = max((trial.epochs for trial in self.trials), default=0)
        rungs = []
        for epoch in range(1, last + 1):
            ended = Counter(t.state for t in self.trials if t.epochs == epoch)
            reached = sum(t.epochs >= epoch for t in self.trials)
            rungs.append(Rung(epoch, reached, reached - ended.total(), ended))
        return rungs

    def pareto_front(self) -> list[TrialFacts]:
        """Complete trials that no other beats in both objectives, the cheapest first."""
        known = [t for t in self.of_state("complete") if None not in (t.value, t.second)]
        front: list[TrialFacts] = []
        for trial in sorted(known, key=lambda t: (t.second or 0.0, -(t.value or 0.0), t.number)):
            if not front or (trial.value or 0.0) > (front[-1].value or 0.0):
                front.append(trial)
        return front

    def rank_correlations(self) -> list[RankCorrelation]:
        """Label-free figures against `val_auc` over the complete trials that have both."""
        found = []
        for figure in LABEL_FREE:
            pairs = [
                (trial.metrics[figure], trial.metrics["val_auc"])
                for trial in self.of_state("complete")
                if {figure, "val_auc"} <= trial.metrics.keys()
            ]
            found.append(spearman(figure, np.array(pairs, dtype=float).reshape(-1, 2)))
        return found


def read_facts(folder: Path, storage_uri: str | None = None) -> list[TypeFacts]:
    """The studies of all machine types of a search, by name.

    Args:
        folder: Of the study, `<out>/<study>`.
        storage_uri: Where its trials are, if not where the folder says.

    Raises:
        ReportError: There is no storage, or no study in it.
    """
    uri = storage_uri or noted_uri(folder)
    if uri is None:
        return _read_all(_journal(folder / JOURNAL), str(folder / JOURNAL))
    from search.postgres import PostgresError, read_postgres

    try:
        require_postgres(uri)
        with read_postgres(uri) as storage:
            return _read_all(storage, f"{uri}, for {folder.name!r},", folder.name)
    except StudyError as error:
        raise ReportError(str(error)) from error
    except PostgresError as error:
        raise ReportError(f"cannot use the storage {uri}: {error}") from error


def _journal(path: Path) -> BaseStorage:
    if not path.is_file():  # Optuna would create it
        raise ReportError(
            f"{path} does not exist: --study must name a study in --out that was searched "
            "before; python -m search.run makes one"
        )
    try:
        return JournalStorage(JournalFileBackend(str(path.absolute())))
    except (ValueError, KeyError, OSError) as error:
        raise ReportError(f"{path} is no readable journal of Optuna: {error}") from error


def _read_all(storage: BaseStorage, where: str, study: str | None = None) -> list[TypeFacts]:
    names = optuna.get_all_study_names(storage)
    if study is not None:  # a database holds others too
        names = [name for name in names if name.rpartition("/")[0] == study]
    if not names:
        raise ReportError(f"{where} holds no study yet: wait for the search's first trial")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in sorted(names)]
    return [_facts_of(study) for study in studies]


def _facts_of(study: optuna.Study) -> TypeFacts:
    notes = study.user_attrs
    identity, resources = notes.get("identity", {}), notes.get("resources", {})
    return TypeFacts(
        machine_type=study.study_name.rpartition("/")[2],
        objective=identity.get("objective", "objective"),
        second_objective=notes.get("second_objective"),
        n_epochs=identity.get("study", {}).get("epochs"),
        resources=resources,
        trials=tuple(_trial(trial, resources) for trial in study.get_trials(deepcopy=False)),
        finalists=_finalists(notes, resources),
        outcome=notes.get("outcome", {}),
        systems=notes.get(FINALISTS, {}).get("systems", ()),
        n_chosen_from=notes.get(FINALISTS, {}).get("complete"),
    )


def _trial(trial: FrozenTrial, resources: Mapping[str, float]) -> TrialFacts:
    attrs, curve = trial.user_attrs, dict(trial.intermediate_values)
    epochs = {epoch: attrs.get(f"{EPOCH}{epoch}", {}) for epoch in curve}
    timed = [float(metrics["seconds"]) for metrics in epochs.values() if "seconds" in metrics]
    last = max(curve, default=0)
    values = trial.values or []
    second = attrs.get("second_objective", values[1] if len(values) > 1 else None)
    return TrialFacts(
        number=trial.number,
        state=_state(trial),
        reason=attrs.get("reason", ""),
        params={**trial.params, **attrs.get("fixed", {})},
        distributions=trial.distributions,
        curve=curve,
        value=values[0] if values else curve.get(last),
        second=None if second is None else float(second),
        metrics=epochs.get(last, {}),
        seconds=sum(timed),
        n_timed=len(timed),
        held=held_hours(epochs.values(), resources),
        attempts=attrs.get("attempts", 1),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )


def _state(trial: FrozenTrial) -> str:
    if never_ran(trial):
        return "infeasible"
    return "waiting" if trial.state == TrialState.WAITING else ending_of(trial)


def _finalists(notes: Mapping[str, Any], resources: Mapping[str, float]) -> tuple[SeedFacts, ...]:
    """Those of whom a fresh seed is noted: those without a failure first, then by mean."""
    by_number: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for key, note in notes.items():
        if key.startswith(_CONFIRMATION):
            of, _, index = key.removeprefix(_CONFIRMATION).partition("/")
            by_number.setdefault(int(of), []).append((int(index), note))
    found = []
    for number, numbered in by_number.items():
        notes_of_it = [note for _, note in sorted(numbered, key=lambda pair: pair[0])]
        values = tuple(float(note["objective"]) for note in notes_of_it if "objective" in note)
        failures = tuple(str(note["failure"]) for note in notes_of_it if "failure" in note)
        found.append(
            SeedFacts(
                number=number,
                values=values,
                failures=failures,
                n_timed=sum("seconds" in note for note in notes_of_it),
                held=held_hours(notes_of_it, resources),
            )
        )
    return tuple(sorted(found, key=lambda s: (len(s.failures), -(s.mean or 0.0), s.number)))
