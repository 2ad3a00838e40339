"""A search space as one loop over its parameters, in the order of the file."""

from collections.abc import Mapping
from typing import Any

import optuna

from search.config import (
    BoolParameter,
    CategoricalParameter,
    FixedParameter,
    FloatParameter,
    IntParameter,
    Parameter,
)

Params = dict[str, Any]


class Space:
    """Parameters with conditions, compiled from a space file."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)

    def suggest(self, trial: optuna.Trial) -> Params:
        """Ask Optuna for every active parameter and add the fixed ones; inactive ones are absent.

        Asking again for a trial of a killed search returns what it already got.
        """
        params: Params = {}
        for name, parameter in self.parameters.items():
            if all(params.get(needed) == value for needed, value in parameter.when.items()):
                params[name] = _suggest(trial, name, parameter)
        return params


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    match parameter:
        case FloatParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case IntParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, step=step or 1, log=log)
        case CategoricalParameter(choices=choices):
            return trial.suggest_categorical(name, choices)
        case BoolParameter():
            return trial.suggest_categorical(name, [False, True])
        case FixedParameter(value=value):
            return value


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
    conditions = " and ".join(f"{name} is {value}" for name, value in parameter.when.items())
    return f"{text}, when {conditions}" if conditions else text
