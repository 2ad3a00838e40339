"""Whether the nodes of a cluster can use the shared storage, before a search and while it runs."""

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.failures import is_storage
from search.shared_files import SharedFiles, SharedFilesError

logger = logging.getLogger(__name__)

_LOSSES = 2  # of a trial's workers, each after `PATIENCE_S`: the storage is gone, not a node
_ANSWER_S = 300.0  # of a node; a store that is silent costs its SDK minutes


def probe_nodes(files: SharedFiles, packs: Mapping[str, str]) -> None:
    """Let every node of the connected cluster look for the packs, and write beside them.

    A node that joins later is not asked: what it cannot do, its trials say. A cluster of one
    machine is not asked either, for the driver has probed.

    Raises:
        SharedFilesError: One of them cannot; the message names it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = ray.remote(_probe)
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = probe.options(num_cpus=0, scheduling_strategy=here)
        asked[task.remote(files.root, list(packs.values()))] = node["NodeManagerAddress"]
    for answer, address in asked.items():
        try:
            refusal = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:  # it went away, or is slow: the trials will see
            logger.warning("node %s could not be asked: %s", address, str(error).splitlines()[0])
        else:
            if refusal:
                raise SharedFilesError(f"node {address}: {refusal}")


def _probe(root: str, packs: list[str]) -> str | None:
    """On a node: why it cannot use the storage, None if it can."""
    files = SharedFiles(root)
    try:
        for pack in packs:
            files.require(pack)
        files.probe()
    except SharedFilesError as error:
        return str(error)
    return None


class StorageStopper(tune.Stopper):  # type: ignore[misc]
    """Ends a run whose storage is gone: its trials stay unfinished instead of failing one by one.

    Args:
        losses: Tune's trial id -> why its workers were lost so far.
    """

    def __init__(self, losses: Mapping[str, list[str]]) -> None:
        self._losses = losses
        self.is_set = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stops no single trial."""
        return False

    def stop_all(self) -> bool:
        """See Stopper."""
        for reasons in self._losses.values():
            refusals = [reason for reason in reasons if is_storage(reason)]
            if len(refusals) >= _LOSSES and not self.is_set:
                self.is_set = True
                logger.error(
                    "the search ends, its trials unfinished, for a trial could not use the shared "
                    "storage %d times: %s; mend it and repeat the command to continue",
                    len(refusals),
                    refusals[-1],
                )
        return self.is_set
