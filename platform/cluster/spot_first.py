"""Which kind of worker Ray's autoscaler starts: of those that suit best one that the cloud has just now.

Ray's own choice would ask for spot instances for ever where there are none. Between equals it takes the last in the
alphabet: spot before on_demand.
"""

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer
from ray.autoscaler._private.util import ResourceDict


def score(
    node_resources: ResourceDict,
    resources: list[ResourceDict],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """How well a kind of worker suits what waits for resources; None: not at all.

    RAY_AUTOSCALER_UTILIZATION_SCORER names it. A kind that could not be started counts as missing for half an hour.
    """
    score = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    tried = node_availability_summary.node_availabilities.get(node_type)
    return None if score is None else (tried is None or tried.is_available, *score)
