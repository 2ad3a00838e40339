"""What a sampler sees of a study: a study in memory, made anew for each suggestion.

A sampler so keeps no state of its own. What it suggests depends on the trials that it is shown, on
the trial's number and on the seed, however often the search was killed and continued.
"""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_limits

from search.space import Params, Space, all_params, neutral

_CONSTRAINT = "constraints:"  # how Optuna's system attributes of a constraint begin
_MOST_DRAWS = 20  # in search of a configuration that was not tried yet
COST = "second_objective"  # user attribute of a trial: what it costs; of a study: in what


def paused_after(trial: FrozenTrial) -> int | None:
    """The epoch after which a trial waits for being let on, None for one that does not."""
    if trial.state != TrialState.RUNNING:
        return None
    epoch: int | None = trial.user_attrs.get("paused")
    return epoch


class View:
    """Shows samplers the trials of one study.

    Args:
        space: What may be suggested.
        with_cost: Show the second objective as well.
    """

    def __init__(self, space: Space, *, with_cost: bool = False) -> None:
        self._space, self._with_cost = space, with_cost
        # By number: a study is shown again and again, and what has ended stays as it is.
        self._constraints: dict[int, dict[str, float]] = {}
        self._copies: dict[int, tuple[object, FrozenTrial]] = {}  # the last copy, and of what

    def draw(
        self,
        sampler: BaseSampler,
        seen: Sequence[FrozenTrial],
        *,
        hidden: frozenset[int] = frozenset(),
        given: Params | None = None,
        whole: bool = False,
    ) -> FrozenTrial:
        """A trial that a sampler suggests; it is not part of any stored study.

        Args:
            sampler: Who suggests.
            seen: All trials before it, by number.
            hidden: Numbers of those whose reports it must not know: to the sampler they still run.
            given: Parameters to take instead of the sampler's.
            whole: Show trials as a sampler wants them that models only what is the same in all of
                them and is complete: inactive parameters have a neutral value, a trial that was
                stopped early has the value to be expected of it, and one that failed the worst.
        """
        directions = ["maximize", "minimize"] if self._with_cost else ["maximize"]
        study = optuna.create_study(sampler=sampler, directions=directions)  # type: ignore[arg-type]
        if given is not None:
            study.enqueue_trial(given)
        elif not isinstance(sampler, RandomSampler):
            for trial in self._shown(seen, hidden, whole):  # `add_trial` would check each again
                study._storage.create_new_trial(study._study_id, template_trial=trial)
        # Small matrices: further threads would mostly wait, on cores that trials could use.
        with threadpool_limits(1):
            return self._ask(study)

    def draw_untried(self, tried: Sequence[Params], seed: int) -> FrozenTrial | None:
        """A trial drawn at random whose parameters are not among those; None if none was found."""
        study = optuna.create_study(sampler=RandomSampler(seed=seed))
        drawn = (self._ask(study) for _ in range(_MOST_DRAWS))
        return next((trial for trial in drawn if all_params(trial) not in tried), None)

    def _ask(self, study: optuna.Study) -> FrozenTrial:
        with np.errstate(invalid="ignore"):  # the Gaussian process may divide 0 by 0, and goes on
            params = self._space.suggest(study.ask())
        drawn = study.get_trials(deepcopy=False)[-1]
        drawn.user_attrs["fixed"] = {k: v for k, v in params.items() if k not in drawn.params}
        return drawn

    def _constraints_of(self, trial: FrozenTrial) -> dict[str, float]:
        if not trial.state.is_finished():  # a paused one may still run out of memory
            return trial.constraints
        if trial.number not in self._constraints:
            self._constraints[trial.number] = trial.constraints
        return self._constraints[trial.number]

    def _shown(
        self, seen: Sequence[FrozenTrial], hidden: frozenset[int], whole: bool
    ) -> Iterator[FrozenTrial]:
        known = [t for t in seen if t.number not in hidden and _is_known(t)]
        constraints = {trial.number: self._constraints_of(trial) for trial in known}
        names = frozenset(name for of_trial in constraints.values() for name in of_trial)
        complete = [trial for trial in known if trial.state == TrialState.COMPLETE]
        worst = [min((t.values[0] for t in complete), default=0.0)]
        if self._with_cost:
            worst.append(max((t.user_attrs[COST] for t in complete), default=0.0))
        gains = _gains(complete) if whole else {}
        for trial in seen:
            if trial.number not in constraints:
                yield _running(self._space, trial, whole)
                continue
            gain = None
            was_stopped = trial.state in (TrialState.PRUNED, TrialState.RUNNING)  # or is paused
            if whole and was_stopped and trial.intermediate_values:
                gain = gains.get(max(trial.intermediate_values))
            is_good = all(excess <= 0 for excess in constraints[trial.number].values())
            if whole and trial.state == TrialState.FAIL:
                # Its like would mostly fail again, and who overlooks it would suggest them again.
                is_good = False
            paused = paused_after(trial)
            key = (names, whole, gain, None if is_good else worst, trial.state, paused)
            known_key, copy = self._copies.get(trial.number, (None, trial))
            if known_key != key:
                copy = _ended(self._space, trial, names, worst, whole, gain, is_good)
                self._copies[trial.number] = (key, copy)
            yield copy


class _Shared(FrozenTrial):
    """Copied by reference: a study in memory would copy every trial once more."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


def _shared(**values: Any) -> FrozenTrial:
    trial = create_trial(**values)
    trial.__class__ = _Shared
    return trial


def _gains(complete: Sequence[FrozenTrial]) -> dict[int, float]:
    """Epoch -> what complete trials typically gained from there to their end."""
    of_epoch: dict[int, list[float]] = {}
    for trial in complete:
        for epoch, value in trial.intermediate_values.items():
            of_epoch.setdefault(epoch, []).append(trial.values[0] - value)
    return {epoch: float(np.median(gains)) for epoch, gains in of_epoch.items()}


def _is_known(trial: FrozenTrial) -> bool:
    """Whether a trial has ended, or waits with what it has reached."""
    return trial.state != TrialState.RUNNING or paused_after(trial) is not None


def _running(space: Space, trial: FrozenTrial, whole: bool) -> FrozenTrial:
    """A copy without anything that was reported."""
    attributes = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_CONSTRAINT)}
    parameters = _parameters(space, trial, whole)
    return _shared(state=TrialState.RUNNING, **parameters, system_attrs=attributes)


def _ended(
    space: Space,
    trial: FrozenTrial,
    names: Set[str],
    worst: Sequence[float],
    whole: bool,
    gain: float | None,
    is_good: bool,
) -> FrozenTrial:
    """A copy with what samplers read, and nothing that some of them stumble over.

    Every trial has the same constraints, as the Gaussian process wants. One that is not good, such
    as one that breaks a constraint, is complete with the worst values, for most samplers overlook
    all others.
    """
    state = trial.state if is_good else TrialState.COMPLETE
    if state == TrialState.RUNNING:  # paused: for the sampler as if it had been stopped
        state = TrialState.PRUNED
    values = None
    if state == TrialState.COMPLETE:
        own = [trial.values[0], trial.user_attrs.get(COST)] if is_good else worst
        values = own[: len(worst)]
    elif gain is not None:
        state = TrialState.COMPLETE
        value = trial.intermediate_values[max(trial.intermediate_values)] + gain
        values = [value, trial.user_attrs.get(COST)][: len(worst)]
    attributes = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_CONSTRAINT)}
    return _shared(
        state=state,
        values=values,
        **_parameters(space, trial, whole),
        # Optuna ranks pruned trials by their last value, of which it wants one objective only.
        intermediate_values={} if len(worst) > 1 else trial.intermediate_values,
        system_attrs=attributes,
        constraints={name: trial.constraints.get(name, -1.0) for name in names},
    )


def _parameters(space: Space, trial: FrozenTrial, whole: bool) -> dict[str, Any]:
    """A trial's parameters in the present ranges of the space, which may have been widened.

    Samplers model together only what has the same range in all trials.
    """
    located = space.locate(all_params(trial))
    assert located is not None, "a study is refused where its space does not hold a trial"
    ranges = {n: values for n, values in space.distributions.items() if whole or n in located}
    params = {
        name: located[name] if name in located else neutral(space.parameters[name])
        for name in ranges
    }
    return {"params": params, "distributions": ranges}
