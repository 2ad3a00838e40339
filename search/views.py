"""What a sampler sees of a study: a study in memory, made anew for each suggestion.

A sampler so keeps no state of its own. What it suggests depends on the trials that it is shown, on
the trial's number and on the seed, however often the search was killed and continued.
"""

from collections.abc import Sequence, Set
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config import FixedParameter
from search.space import Params, Space, all_params, distribution

_CONSTRAINT = "constraints:"  # how Optuna's system attributes of a constraint begin
COST = "second_objective"  # user attribute of a trial: what it costs; of a study: in what


def draw(
    space: Space,
    sampler: BaseSampler,
    seen: Sequence[FrozenTrial],
    *,
    hidden: frozenset[int] = frozenset(),
    with_cost: bool = False,
    given: Params | None = None,
) -> FrozenTrial:
    """A trial of `space` that a sampler suggests; it is not part of any stored study.

    Args:
        space: What may be suggested.
        sampler: Who suggests.
        seen: All trials before it, by number.
        hidden: Numbers of those whose reports it must not know: to the sampler they still run.
        with_cost: Show the second objective as well.
        given: Parameters to take instead of the sampler's.
    """
    study = optuna.create_study(
        sampler=sampler, directions=["maximize", "minimize"] if with_cost else ["maximize"]
    )
    names = {name for trial in seen for name in trial.constraints}
    complete = [t for t in seen if t.state == TrialState.COMPLETE]
    worst = [min((t.values[0] for t in complete), default=0.0)]
    if with_cost:
        worst.append(max((t.user_attrs[COST] for t in complete), default=0.0))
    study.add_trials(
        _running(space, trial)
        if trial.number in hidden or trial.state == TrialState.RUNNING
        else _ended(space, trial, names, worst)
        for trial in seen
    )
    if given is not None:
        study.enqueue_trial(given)
    trial = study.ask()
    params = space.suggest(trial)
    drawn = study.get_trials(deepcopy=False)[-1]
    drawn.user_attrs["fixed"] = {k: v for k, v in params.items() if k not in drawn.params}
    return drawn


def _running(space: Space, trial: FrozenTrial) -> FrozenTrial:
    """A copy without anything that was reported."""
    attributes = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_CONSTRAINT)}
    return create_trial(
        state=TrialState.RUNNING, **_parameters(space, trial), system_attrs=attributes
    )


def _ended(
    space: Space, trial: FrozenTrial, names: Set[str], worst: Sequence[float]
) -> FrozenTrial:
    """A copy with what samplers read, and nothing that some of them stumble over.

    Every trial has the same constraints, as the Gaussian process wants. One that breaks a
    constraint is complete with the worst values, for most samplers overlook all others.
    """
    is_feasible = all(excess <= 0 for excess in trial.constraints.values())
    state = trial.state if is_feasible else TrialState.COMPLETE
    values = None
    if state == TrialState.COMPLETE:
        own = [trial.values[0], trial.user_attrs.get(COST)] if is_feasible else worst
        values = own[: len(worst)]
    attributes = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_CONSTRAINT)}
    return create_trial(
        state=state,
        values=values,
        **_parameters(space, trial),
        # Optuna ranks pruned trials by their last value, of which it wants one objective only.
        intermediate_values={} if len(worst) > 1 else trial.intermediate_values,
        system_attrs=attributes,
        constraints={name: trial.constraints.get(name, -1.0) for name in names},
    )


def _parameters(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters in the present ranges of the space, which may have been widened.

    Samplers model together only what has the same range in all trials.
    """
    located = space.locate(all_params(trial))
    assert located is not None, "a study is refused where its space does not hold a trial"
    ranges = {
        name: distribution(space.parameters[name])
        for name in located
        if not isinstance(space.parameters[name], FixedParameter)
    }
    return {"params": {name: located[name] for name in ranges}, "distributions": ranges}
