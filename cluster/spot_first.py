"""Which machines Ray's autoscaler launches next: spot, and on demand while AWS has no spot.

Ray 2.60 by itself asks for a refused type again and again: its first autoscaler notes refusals but
does not score by them, its second one does not even note those that come at once, as AWS's do. The
head of `cluster/gpu.yaml` therefore starts the first one with
`RAY_AUTOSCALER_UTILIZATION_SCORER=cluster.spot_first.score`. A refusal is forgotten after half an
hour (`AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S`), then spot is tried again.
"""

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def score(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Ray's own score, below "not just refused" and above "is spot"; the highest is launched.

    Args:
        node_resources: What one machine of the type has.
        resources: What is asked for.
        node_type: Name in `available_node_types`.
        node_availability_summary: How the last launch of each type ended.

    Returns:
        None if such a machine holds nothing of what is asked for.
    """
    own = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if own is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    return (last is None or last.is_available, *own, node_type.endswith("_spot"))
