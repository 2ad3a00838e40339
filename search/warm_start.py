"""Configurations that a search begins with: the paper's, then the champions there are."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from mimimi_core.detector import Detector, DetectorError
from search.registry import Registry
from search.space import DEFAULTS
from search.studies import Offer
from search.tracking import TrackingError

logger = logging.getLogger(__name__)


def offers(registry: Registry, machine_type: str) -> list[Offer]:
    """The paper's setting, the champion of the same machine type, then those of the others."""
    others = [name for name in registry.machine_types() if name != machine_type]
    found: list[Offer] = [("the paper's setting", DEFAULTS)]
    for name in [machine_type, *others]:
        champion = registry.champion(name)
        if champion is None:
            continue
        origin = f"champion of {name}, version {champion[0]}"
        try:
            with TemporaryDirectory() as folder:
                detector = Detector.load(registry.download(name, champion[0], Path(folder)))
        except (DetectorError, TrackingError) as error:
            logger.warning("no warm start from the %s: %s", origin, error)
        else:
            found += [(origin, member.config.to_params()) for member in detector.members]
    return found
