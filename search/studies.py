"""The truth of a search: one Optuna study per machine type in one journal file, one writer.

Every epoch is stored as it is reported, so a search that dies at any moment continues from here,
and the tracking server can be filled again from here.
"""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search.config import SamplerConfig
from search.samplers import build_sampler, derive_seed
from search.space import Params, Space

JOURNAL = "optuna.journal"
EPOCH = "epoch/"  # user attribute of one epoch's metrics, "epoch/3"
_MOST_DIFFERENCES = 3  # shown when a study is refused


class StudyError(ValueError):
    """A study cannot be opened or continued as asked."""


@contextmanager
def open_storage(folder: Path) -> Iterator[BaseStorage]:
    """The study's journal, held by this process alone.

    Raises:
        StudyError: Another process runs this study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyError(
                f"study {folder.name!r} in {folder.parent} is being run by another process: "
                "wait for it, or choose another --study"
            ) from error
        journal = folder / JOURNAL
        _mend(journal)
        yield JournalStorage(JournalFileBackend(str(journal.absolute())))


def _mend(journal: Path) -> None:
    """Undo what a killed writer leaves: a lock nobody holds, half of a last line."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with journal.open("r+b") as file:
                file.truncate(whole)


class TypeStudy:
    """The Optuna study of one machine type.

    Args:
        storage: Shared by all machine types of the search.
        name: Of the whole search.
        machine_type: Whose study this is.
        objective: Name of what is maximised.
        space: What may be suggested.
        sampler: Who suggests.
        seed: Of the whole search.
        identity: What must not change under one name: the space, the data, the budgets of a trial.

    Raises:
        StudyError: The name belongs to a study with another identity.
    """

    def __init__(
        self,
        storage: BaseStorage,
        *,
        name: str,
        machine_type: str,
        objective: str = "val_auc",
        space: Space,
        sampler: SamplerConfig,
        seed: int,
        identity: Mapping[str, Any],
    ) -> None:
        self.machine_type, self.space = machine_type, space
        self.objective = objective
        self._storage, self._sampler, self._seed = storage, sampler, seed
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{name}/{machine_type}",
            direction="maximize",
            load_if_exists=True,
            sampler=build_sampler(sampler, seed),
        )
        _require_identity(self._study, {**identity, "objective": objective})

    def ask(self) -> FrozenTrial:
        """Start a new trial with suggested parameters."""
        self._study.sampler = self._sampler_of(len(self.trials()))
        return self._suggest(self._study.ask())

    def resume(self, number: int) -> FrozenTrial:
        """Take up a trial that a killed search left, completing its parameters if need be."""
        self.add_attempts(number, 1)
        self._study.sampler = self._sampler_of(number)
        return self._suggest(optuna.Trial(self._study, self.trial(number)._trial_id))

    def _suggest(self, trial: optuna.Trial) -> FrozenTrial:
        params = self.space.suggest(trial)
        fixed = {name: value for name, value in params.items() if name not in trial.params}
        trial.set_user_attr("fixed", fixed)
        return self.trial(trial.number)

    def train_seed(self, number: int, fresh: int | None = None) -> int:
        """Seed of a trial's training, or of a fresh one that the search never saw."""
        return derive_seed(self._seed, self.machine_type, number, "train", fresh)

    def record_epoch(
        self, number: int, epoch: int, metrics: Mapping[str, float], objective: float
    ) -> None:
        """Store what a trial reported after an epoch (1-based); repeating it changes nothing."""
        trial = self.trial(number)
        if epoch in trial.intermediate_values:
            return
        stamped = dict(metrics) | {"timestamp_ms": int(time.time() * 1000)}
        self._storage.set_trial_user_attr(trial._trial_id, f"{EPOCH}{epoch}", stamped)
        self._storage.set_trial_intermediate_value(trial._trial_id, epoch, objective)

    def add_attempts(self, number: int, n: int) -> None:
        """Count further executions of a trial, whose worker or whose search died."""
        trial = self.trial(number)
        attempts = trial.user_attrs.get("attempts", 1) + n
        self._storage.set_trial_user_attr(trial._trial_id, "attempts", attempts)

    def finish(
        self, number: int, state: TrialState, value: float | None = None, reason: str = ""
    ) -> FrozenTrial:
        """End a trial; a value only for a complete one."""
        if reason:
            self._storage.set_trial_user_attr(self.trial(number)._trial_id, "reason", reason)
        self._study.tell(number, value, state=state)
        return self.trial(number)

    def trial(self, number: int) -> FrozenTrial:
        """One trial by its number."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._study._study_id, number
        )
        return self._storage.get_trial(trial_id)

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    def count(self, state: TrialState) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials())

    def best(self) -> FrozenTrial | None:
        """The complete trial with the highest objective; pruned ones do not qualify."""
        complete = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        return max(complete, key=lambda t: (t.value or 0.0, -t.number), default=None)

    def note(self, key: str, value: Any) -> None:
        """Store a fact about the study, such as what the winner did on the test clips."""
        self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What `note` stored, or None."""
        return self._study.user_attrs.get(key)

    def _sampler_of(self, number: int) -> optuna.samplers.BaseSampler:
        """Randomness depends on the trial's number alone.

        A search that was killed and continued so draws what it would have drawn, instead of its
        first random trials once more.
        """
        return build_sampler(self._sampler, derive_seed(self._seed, self.machine_type, number))


def all_params(trial: FrozenTrial) -> Params:
    """All parameters of a trial, fixed ones included."""
    return {**trial.params, **trial.user_attrs["fixed"]}


def _require_identity(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(identity))
    stored = study.user_attrs.get("identity")
    if stored is None:
        study.set_user_attr("identity", wanted)
        return
    differences = list(_differences("", stored, wanted))
    if differences:
        shown = "; ".join(differences[:_MOST_DIFFERENCES])
        left = len(differences) - _MOST_DIFFERENCES
        raise StudyError(
            f"study {study.study_name!r} exists with other settings: {shown}"
            + (f"; and {left} more" if left > 0 else "")
            + "; choose another --study, or --out"
        )


def _differences(path: str, stored: Any, wanted: Any) -> Iterator[str]:
    """What differs between two JSON values, as `study.epochs is 30 there, 20 here`."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            deeper = f"{path}.{key}" if path else key
            yield from _differences(deeper, stored.get(key), wanted.get(key))
    elif stored != wanted:
        yield f"{path} is {_short(stored)} there, {_short(wanted)} here"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
