"""The search space of a table: all combinations of a few values."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.config import CategoricalParameter, IntParameter
from search.space import Params, Space


class Grid:
    """Named parameters, each with its possible values.

    Attributes:
        space: What a search sees. Texts and switches are categorical; a number is searched by its
            place in the list, which is even on the scale on which one would search it.
    """

    def __init__(self, choices: Mapping[str, Sequence[Any]]) -> None:
        self._choices = dict(choices)
        self.space = Space({name: _parameter(values) for name, values in self._choices.items()})

    def places(self, params: Params) -> tuple[int, ...]:
        """Where in its list each value stands, in the order of the parameters."""
        return tuple(
            values.index(params[name]) if _is_categorical(values) else params[name]
            for name, values in self._choices.items()
        )


def _is_categorical(values: Sequence[Any]) -> bool:
    return isinstance(values[0], (str, bool))


def _parameter(values: Sequence[Any]) -> CategoricalParameter | IntParameter:
    if _is_categorical(values):
        return CategoricalParameter(kind="categorical", choices=list(values))
    return IntParameter(kind="int", low=0, high=len(values) - 1)
