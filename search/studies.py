"""The truth of a search: one Optuna study per machine type in one storage, one writer.

Every epoch is stored as it is reported, so a search that dies at any moment continues from here,
and the tracking server can be filled again from here.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from mimimi_core.config import ConfigError, TrialConfig, differences
from search.config import SamplerConfig
from search.samplers import build_sampler, derive_seed
from search.space import Params, Space, all_params
from search.views import COST, View, paused_after

logger = logging.getLogger(__name__)

FINALISTS = "finalists"  # note of a study: what they all made of the test clips
EPOCH = "epoch/"  # user attribute of one epoch's metrics, "epoch/3"
STAMPS = ("timestamp_ms", "cpu", "gpu")  # of such an attribute, beside the metrics
_UID = "uid"  # note of a study
LET_ON = "let_on"  # user attribute: the last rung from which a trial that had paused went on
STOPPED = "stopped"  # user attribute: the epoch after which the scheduler ends a trial
INFEASIBLE = "infeasible"  # how the reason of a trial begins that was never run
_MEMORY = "memory"  # constraint that a trial breaks for which memory did not suffice
_MOST_DIFFERENCES = 3  # shown when a study is refused
_MOST_INFEASIBLE = 200  # suggestions in a row before a search gives up

Ending = Literal["complete", "pruned", "failed", "running", "paused"]
Offer = tuple[str, Params]  # where a configuration comes from, and its parameters


class StudyError(ValueError):
    """A study cannot be opened or continued as asked."""


class StorageLost(SystemExit):  # noqa: N818  # no error of the program, but its end
    """Trials cannot be stored any more: ends the process with this message and exit code 1.

    No Exception, because Tune takes any that arises while it handles a trial for a failure of that
    trial, and would have it recorded as one.
    """


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
        identity: What must not change under one name: the data, the budgets of a trial. Its
            `parameters` may, as long as the space holds every trial that there is.
        offers: Gives configurations to begin with; called only where the study has noted none.
        excesses: Parameters -> by how much a trial exceeds each limit; above 0 it is not run.
        cost: Parameters -> second objective, minimised.
        lag: Hide from a trial what the `lag - 1` trials before it do, whether they have ended or
            not, so that nothing depends on timing; None shows all there is.

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
        offers: Callable[[], Sequence[Offer]] = tuple,
        excesses: Callable[[Params], Mapping[str, float]] = lambda params: {},
        cost: Callable[[Params], float] | None = None,
        lag: int | None = None,
    ) -> None:
        self.machine_type, self.space = machine_type, space
        self.objective = objective
        self._storage, self._sampler, self._seed = storage, sampler, seed
        self._excesses, self._cost, self._lag = excesses, cost, lag
        self._view = View(space, with_cost=cost is not None)
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{name}/{machine_type}",
            direction="maximize",
            load_if_exists=True,
        )
        self._require_identity({**identity, "objective": objective})
        if self.noted(_UID) is None:
            self.note(_UID, uuid4().hex)
        if self.noted("offers") is None:
            self.note("offers", self._fitting(offers()))
        self._grid = list(space.grid()) if sampler.name == "grid" else None

    @property
    def uid(self) -> str:
        """Tells it from others that had its name, before it or elsewhere."""
        return str(self.noted(_UID))

    def _fitting(self, offers: Sequence[Offer]) -> list[Offer]:
        """Those that the space holds, as it would express them, each once."""
        found: list[Offer] = []
        for origin, settings in offers:
            params = self.space.locate(settings)
            if params is not None and params not in [known for _, known in found]:
                found.append((origin, params))
        return found

    @property
    def is_exhausted(self) -> bool:
        """Whether no configuration is left to try."""
        return self._grid is not None and self._untried() is None

    def _untried(self) -> Params | None:
        """The next configuration of the grid, which may have been widened; None at its end."""
        tried = [self.space.locate(all_params(trial)) for trial in self._all()]
        return next((params for params in self._grid or () if params not in tried), None)

    def can_ask(self) -> bool:
        """Whether all has ended that the next trial is to know of."""
        ran = self.trials()
        known = ran[: max(0, len(ran) - self._lag + 1)] if self._lag else []
        return all(trial.state.is_finished() for trial in known)

    def ask(self) -> FrozenTrial | None:
        """Start a new trial with suggested parameters, passing over those that cost too much.

        Returns:
            None if no configuration is left.

        Raises:
            StudyError: Nothing affordable is suggested any more.
        """
        for _ in range(_MOST_INFEASIBLE):
            if self.is_exhausted:
                return None
            trial = self._draw()
            excesses = self._excesses(all_params(trial))
            broken = {name: value for name, value in excesses.items() if value > 0}
            if not broken:
                cost = {} if self._cost is None else {COST: self._cost(all_params(trial))}
                return self._create(trial, TrialState.RUNNING, cost, excesses)
            shown = ", ".join(f"{name} by {100 * value:.0f} %" for name, value in broken.items())
            misfit = _misfit(all_params(trial))
            reason = misfit or f"exceeds {shown}"
            self._create(trial, TrialState.PRUNED, {"reason": f"{INFEASIBLE}: {reason}"}, excesses)
        rule = f"break a limit of `constraints` (the last one {reason}): raise it, or"
        if misfit:
            rule = f"do not fit together (the last one: {reason}):"
        raise StudyError(
            f"{self.machine_type}: {_MOST_INFEASIBLE} suggestions in a row {rule} narrow the "
            "parameters to what fits"
        )

    def resume(self, number: int) -> FrozenTrial:
        """Take up a trial that a killed search left."""
        self.add_attempts(number, 1)
        trial = self.trial(number)
        if _MEMORY in trial.constraints:  # the search was about to end it, and it is tried again
            self._storage.set_trial_system_attr(trial._trial_id, f"constraints:{_MEMORY}", -1.0)
        return self.trial(number)

    def _draw(self) -> FrozenTrial:
        """The next trial, not stored yet."""
        trials = self._all()
        number = len(trials)
        given, offered = None, {}
        if self._grid is not None:
            given = self._untried()
        else:
            used = {trial.user_attrs.get("offer") for trial in trials}
            for index, (origin, settings) in enumerate(self.noted("offers")):
                params = self.space.locate(settings)  # which may have been changed since
                if index not in used and params is not None:
                    given, offered = params, {"offer": index, "origin": origin}
                    break
        seed = derive_seed(self._seed, self.machine_type, number)
        sampler, whole = build_sampler(self._sampler, seed, number)
        drawn = self._view.draw(
            sampler,
            trials,
            hidden=self._hidden_from(number),
            given=given,
            whole=whole,
        )
        tried = [all_params(trial) for trial in trials]
        if given is None and all_params(drawn) in tried:
            # A second try only repeats the luck of a seed, which confirmation judges better.
            drawn = self._view.draw_untried(tried, seed) or drawn
        drawn.user_attrs.update(offered)
        return drawn

    def _create(
        self,
        drawn: FrozenTrial,
        state: TrialState,
        attributes: Mapping[str, Any],
        constraints: Mapping[str, float],
    ) -> FrozenTrial:
        """Store a trial in one record: a search that is killed leaves it whole or not at all."""
        template = create_trial(
            state=state,
            params=drawn.params,
            distributions=drawn.distributions,
            user_attrs={**drawn.user_attrs, **attributes},
            system_attrs=drawn.system_attrs,
            constraints=dict(constraints),
        )
        number = len(self._all())
        self._storage.create_new_trial(self._study._study_id, template_trial=template)
        return self.trial(number)

    def _hidden_from(self, number: int) -> frozenset[int]:
        """Numbers of earlier trials that a trial must know nothing of."""
        if self._lag is None:
            return frozenset()
        earlier = [trial.number for trial in self.trials() if trial.number < number]
        return frozenset(earlier[max(0, len(earlier) - self._lag + 1) :])

    def rivals(self, number: int) -> list[FrozenTrial]:
        """The trials with which one may be compared while it runs."""
        if self._lag is None:
            return [trial for trial in self.trials() if trial.number != number]
        hidden = self._hidden_from(number)
        return [t for t in self.trials() if t.number < number and t.number not in hidden]

    def train_seed(self, number: int, fresh: int | None = None) -> int:
        """Seed of a trial's training, or of a fresh one that the search never saw."""
        return derive_seed(self._seed, self.machine_type, number, "train", fresh)

    def record_epoch(
        self, number: int, epoch: int, metrics: Mapping[str, float], objective: float
    ) -> None:
        """Store what a trial reported after an epoch (1-based); repeating it changes nothing.

        With it goes what the epoch held, where the study's `resources` are noted: a later run may
        give its trials more or less.
        """
        trial = self.trial(number)
        if epoch in trial.intermediate_values:
            return
        held = self.noted("resources") or {}
        stamped = dict(metrics) | {"timestamp_ms": int(time.time() * 1000), **held}
        self._storage.set_trial_user_attr(trial._trial_id, f"{EPOCH}{epoch}", stamped)
        self._storage.set_trial_intermediate_value(trial._trial_id, epoch, objective)

    def add_attempts(self, number: int, n: int) -> None:
        """Count further executions of a trial, whose worker or whose search died."""
        trial = self.trial(number)
        attempts = trial.user_attrs.get("attempts", 1) + n
        self._storage.set_trial_user_attr(trial._trial_id, "attempts", attempts)

    def pause(self, number: int) -> None:
        """Note that a trial waits where it is, though nothing holds it."""
        trial = self.trial(number)
        epoch = max(trial.intermediate_values)
        self._storage.set_trial_user_attr(trial._trial_id, "paused", epoch)

    def note_stop(self, number: int, epoch: int) -> None:
        """Note that a trial ends early after an epoch, should the search be killed before that."""
        self._storage.set_trial_user_attr(self.trial(number)._trial_id, STOPPED, epoch)

    def go_on(self, number: int) -> FrozenTrial:
        """Take up a trial that was paused."""
        trial = self.trial(number)
        self._storage.set_trial_user_attr(trial._trial_id, LET_ON, paused_after(trial))
        self._storage.set_trial_user_attr(trial._trial_id, "paused", None)
        return self.trial(number)

    def finish(
        self, number: int, state: TrialState, value: float | None = None, reason: str = ""
    ) -> FrozenTrial:
        """End a trial; a value only for a complete one."""
        if reason:
            self._storage.set_trial_user_attr(self.trial(number)._trial_id, "reason", reason)
        self._study.tell(number, value, state=state)
        return self.trial(number)

    def finish_out_of_memory(self, number: int, reason: str) -> FrozenTrial:
        """End a trial that did not fit into memory, so that the sampler avoids its like.

        Samplers overlook failed trials, but what breaks a constraint they model.
        """
        trial_id = self.trial(number)._trial_id
        self._storage.set_trial_system_attr(trial_id, f"constraints:{_MEMORY}", 1.0)
        return self.finish(number, TrialState.PRUNED, reason=reason)

    def trial(self, number: int) -> FrozenTrial:
        """One trial by its number."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._study._study_id, number
        )
        return self._storage.get_trial(trial_id)

    def trials(self) -> list[FrozenTrial]:
        """All trials that ran or run, by number; not to be changed."""
        return [trial for trial in self._all() if not never_ran(trial)]

    def _all(self) -> list[FrozenTrial]:
        """Those as well that were too dear to run."""
        return self._study.get_trials(deepcopy=False)

    def count(self, ending: Ending) -> int:
        """Trials that stand so."""
        return sum(ending_of(trial) == ending for trial in self.trials())

    def n_finished(self) -> int:
        """Trials that have ended."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def n_left(self, n_trials: int) -> int:
        """Trials still to train of so many asked; a grid may hold fewer.

        Paused ones are not among them: most never go on.
        """
        if self.is_exhausted:
            n_trials = min(n_trials, len(self.trials()))
        return max(0, n_trials - self.n_finished() - self.count("paused"))

    def n_infeasible(self) -> int:
        """Suggestions that broke a constraint and never ran."""
        return len(self._all()) - len(self.trials())

    def best(self) -> FrozenTrial | None:
        """The complete trial with the highest objective; pruned ones do not qualify."""
        return next(iter(complete(self.trials())), None)

    def note(self, key: str, value: Any) -> None:
        """Store a fact about the study, such as what the winner did on the test clips."""
        self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What `note` stored, or None."""
        return self._study.user_attrs.get(key)

    def _require_identity(self, identity: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(identity))
        stored = self._study.user_attrs.get("identity")
        if stored is not None:
            found = list(differences("", stored, wanted))
            is_space = [d.startswith("parameters.") for d in found]
            if not all(is_space) or not all(self._holds(trial) for trial in self._all()):
                raise self._refusal(found)
            if found:
                logger.info(
                    "%s: the space has changed and holds all %d earlier trials: %s",
                    self.machine_type,
                    len(self._all()),
                    _shown(found),
                )
        self._study.set_user_attr("identity", wanted)

    def _holds(self, trial: FrozenTrial) -> bool:
        return self.space.locate(all_params(trial)) is not None

    def _refusal(self, differences: Sequence[str]) -> StudyError:
        lost = [trial.number for trial in self._all() if not self._holds(trial)]
        found = [f"exists with other settings: {_shown(differences)}"] if differences else []
        found += [f"trial {lost[0]} lies outside this space"] if lost else []
        name, why = self._study.study_name, "; ".join(found)
        return StudyError(f"study {name!r}: {why}; choose another --study, or --out")


def held_hours(
    records: Iterable[Mapping[str, Any]], resources: Mapping[str, float]
) -> dict[str, float]:
    """Hours that epochs or fresh seeds held: of GPUs where they held any, else of cores.

    A study that ran now with a GPU and now without has both, and they count alike.

    Args:
        records: As stored; those without `seconds` are left out.
        resources: Of records of earlier versions, which do not tell what they held.

    Returns:
        "GPU", "core" or, where nothing is known, "slot" -> hours.
    """
    found: dict[str, float] = {}
    for record in records:
        if "seconds" in record:
            held = {**resources, **record}
            gpu, cpu = held.get("gpu", 0.0), held.get("cpu", 0.0)
            kind, n = ("GPU", gpu) if gpu else ("core", cpu) if cpu else ("slot", 1.0)
            found[kind] = found.get(kind, 0.0) + float(record["seconds"]) * n / 3600
    return found


def hours_unit(kinds: Collection[str], resources: Mapping[str, float]) -> str:
    """Such as `GPU-hours`, of what was held; where nothing was yet, of what will be."""
    kinds = kinds or held_hours([{"seconds": 0.0}], resources)
    return "- and ".join(sorted(kinds)) + "-hours"


def complete(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, best first; of equals, the earlier."""
    found = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(found, key=lambda trial: (-trial.values[0], trial.number))


def ending_of(trial: FrozenTrial) -> Ending:
    """How a trial stands; one that memory did not suffice for has failed."""
    match trial.state:
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.PRUNED:
            is_feasible = all(value <= 0 for value in trial.constraints.values())
            return "pruned" if is_feasible else "failed"
        case TrialState.FAIL:
            return "failed"
        case _:
            return "running" if paused_after(trial) is None else "paused"


def _misfit(params: Params) -> str | None:
    """Why settings cannot be trained together, whatever they cost; None if they can."""
    try:
        TrialConfig.from_params(params)
    except ConfigError as error:
        return str(error)
    return None


def never_ran(trial: FrozenTrial) -> bool:
    """Whether a trial broke a limit of the space file, so that nothing was trained."""
    reason = trial.user_attrs.get("reason", "")
    return trial.state == TrialState.PRUNED and reason.startswith(INFEASIBLE)


def _shown(differences: Sequence[str]) -> str:
    left = len(differences) - _MOST_DIFFERENCES
    more = f"; and {left} more" if left > 0 else ""
    return "; ".join(differences[:_MOST_DIFFERENCES]) + more
