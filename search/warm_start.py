"""Configurations that a search begins with: the paper's, then the champions there are."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mimimi_core.detector import Detector, DetectorError
from search.registry import Registry
from search.space import DEFAULTS
from search.studies import Offer
from search.tracking import TrackingError

logger = logging.getLogger(__name__)


def offers(registry: Registry, machine_type: str, most_of_others: int) -> list[Offer]:
    """The paper's setting, the champion of the same machine type, then those of the others.

    Args:
        registry: Holds the champions.
        machine_type: Whose study begins with them.
        most_of_others: Configurations of other types' champions, an ensemble having several.
    """
    own = [("the paper's setting", DEFAULTS), *_champion(registry, machine_type)]
    others: list[Offer] = []
    for name in registry.machine_types():
        if len(others) >= most_of_others:
            break
        if name != machine_type:
            others += _champion(registry, name)
    return own + others[:most_of_others]


def _champion(registry: Registry, machine_type: str) -> list[Offer]:
    """What the members of a type's champion are; none where there is no champion to read."""
    champion = registry.champion(machine_type)
    if champion is None:
        return []
    origin = f"champion of {machine_type}, version {champion[0]}"
    try:
        with TemporaryDirectory() as folder:
            path = registry.download(machine_type, champion[0], Path(folder))
            detector = Detector.load(path, torch.device("cpu"))  # only its settings are read
    except (DetectorError, TrackingError) as error:
        logger.warning("no warm start from the %s: %s", origin, error)
        return []
    return [(origin, member.config.to_params()) for member in detector.members]
