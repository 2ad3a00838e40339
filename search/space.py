"""A search space as one loop over its parameters, in the order of the file."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from mimimi_core.config import ConflictError, TrialConfig
from search.config import (
    STUDY_OWNED,
    BoolParameter,
    CategoricalParameter,
    FixedParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    boundary_values,
    grid_values,
)

Params = dict[str, Any]


class Space:
    """Parameters with conditions, compiled from a space file."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.distributions = {  # of what is searched, in Optuna's form
            name: distribution(parameter)
            for name, parameter in parameters.items()
            if not isinstance(parameter, FixedParameter)
        }

    def suggest(self, trial: optuna.Trial) -> Params:
        """Ask Optuna for every active parameter and add the fixed ones; inactive ones are absent.

        Asking again for a trial of a killed search returns what it already got.
        """
        params: Params = {}
        for name, parameter in self.parameters.items():
            if _is_active(parameter, params):
                if isinstance(parameter, FixedParameter):
                    params[name] = parameter.value
                else:
                    params[name] = _suggest(trial, name, self.distributions[name])
        return params

    def locate(self, settings: Mapping[str, Any]) -> Params | None:
        """The active parameters with which this space expresses a training, fixed ones included.

        Args:
            settings: Dotted names; what is absent has its default, as in `TrialConfig`.

        Returns:
            None if the space does not hold it: a value lies outside its range, or a setting that
            is no active parameter here differs from its default.
        """
        wanted = {**DEFAULTS, **settings}
        params: Params = {}
        for name, parameter in self.parameters.items():
            if _is_active(parameter, params):
                if not _holds(parameter, wanted[name]):
                    return None
                params[name] = wanted[name]
        if any(wanted[name] != DEFAULTS[name] for name in DEFAULTS if name not in params):
            return None
        return params

    def grid(self) -> Iterator[Params]:
        """Every combination of active parameters whose settings fit together.

        Fixed ones are included; the last parameter varies fastest.
        """
        for params in _combinations(list(self.parameters.items()), {}):
            with suppress(ConflictError):
                TrialConfig.from_params(params)
                yield params


DEFAULTS = {k: v for k, v in TrialConfig().to_params().items() if k not in STUDY_OWNED}


def all_params(trial: FrozenTrial) -> Params:
    """All parameters of a trial, fixed ones included."""
    return {**trial.params, **trial.user_attrs["fixed"]}


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a parameter that is searched."""
    match parameter:
        case FloatParameter(low=low, high=high, log=log, step=step):
            return FloatDistribution(low, high, log=log, step=step)
        case IntParameter(low=low, high=high, log=log, step=step):
            return IntDistribution(low, high, log=log, step=step or 1)
        case CategoricalParameter(choices=choices):
            return CategoricalDistribution(choices)
        case BoolParameter():
            return CategoricalDistribution([False, True])
        case FixedParameter():
            raise AssertionError("a fixed parameter is not searched")


def neutral(parameter: Parameter) -> Any:
    """A value in the middle of a range, or the first choice."""
    match parameter:
        case (
            FloatParameter(low=low, high=high, log=log, step=step)
            | IntParameter(low=low, high=high, log=log, step=step)
        ):
            middle = math.sqrt(low * high) if log else (low + high) / 2
            step = step or (1 if isinstance(parameter, IntParameter) else None)
            return middle if step is None else low + step * round((middle - low) / step)
        case _:
            return boundary_values(parameter)[0]


def _suggest(trial: optuna.Trial, name: str, values: BaseDistribution) -> Any:
    match values:
        case FloatDistribution():
            return trial.suggest_float(
                name, values.low, values.high, step=values.step, log=values.log
            )
        case IntDistribution():
            return trial.suggest_int(
                name, values.low, values.high, step=values.step, log=values.log
            )
        case CategoricalDistribution():
            return trial.suggest_categorical(name, values.choices)
        case _:
            raise AssertionError(values)


def _is_active(parameter: Parameter, params: Params) -> bool:
    return all(params.get(name) in values for name, values in parameter.conditions.items())


def _holds(parameter: Parameter, value: Any) -> bool:
    match parameter:
        case (
            FloatParameter(low=low, high=high, step=step)
            | IntParameter(low=low, high=high, step=step)
        ):
            n_steps = (value - low) / (step or 1)
            is_free = isinstance(parameter, FloatParameter) and step is None
            # As exact as Optuna: the Gaussian process may give 7e-18 for the first step, 0.
            is_step = abs(n_steps - round(n_steps)) < 1e-8
            return low <= value <= high and (is_free or is_step)
        case CategoricalParameter(choices=choices):
            # YAML's 0 is the default 0.0, but no false.
            same_kind = [c for c in choices if isinstance(c, bool) == isinstance(value, bool)]
            return value in same_kind
        case BoolParameter():
            return isinstance(value, bool)
        case FixedParameter(value=fixed):
            return bool(value == fixed)


def _combinations(left: list[tuple[str, Parameter]], params: Params) -> Iterator[Params]:
    if not left:
        yield dict(params)
        return
    (name, parameter), *rest = left
    if not _is_active(parameter, params):
        yield from _combinations(rest, params)
        return
    for value in grid_values(parameter) or ():
        yield from _combinations(rest, params | {name: value})


def describe(parameter: Parameter) -> str:
    """One line for people: `float 1e-05 .. 0.003 log, when network.attention is True`."""
    match parameter:
        case FloatParameter() | IntParameter():
            text = f"{parameter.kind} {parameter.low:g} .. {parameter.high:g}"
            text += " log" if parameter.log else ""
            text += f" step {parameter.step:g}" if parameter.step else ""
        case CategoricalParameter():
            text = "one of " + ", ".join(str(choice) for choice in parameter.choices)
        case BoolParameter():
            text = "true or false"
        case FixedParameter():
            text = f"fixed {parameter.value}"
    conditions = " and ".join(
        f"{name} is {' or '.join(map(str, values))}"
        for name, values in parameter.conditions.items()
    )
    return f"{text}, when {conditions}" if conditions else text
