"""Studies for tests that are about something else."""

from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from search.config import SamplerConfig, SpaceFile
from search.space import Space
from search.studies import TypeStudy
from tests.doubles import space_file


def new_study(
    storage: BaseStorage | None = None,
    machine_type: str = "fan",
    *,
    space: SpaceFile | None = None,
    **settings: Any,
) -> TypeStudy:
    """The study `s` of a machine type; without a space, that of the doubles, drawn at random."""
    known: dict[str, Any] = {
        "space": Space((space or space_file()).parameters),
        "sampler": space.sampler if space else SamplerConfig(name="random"),
        "seed": 0,
        "identity": {},
    }
    return TypeStudy(
        storage or InMemoryStorage(), name="s", machine_type=machine_type, **known | settings
    )
