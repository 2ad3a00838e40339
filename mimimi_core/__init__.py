"""Machine-sound anomaly detection with complex networks: data, network, training, scoring.

Knows nothing of any search, cluster or tracker; `search` imports it, never the reverse.
"""

import os
from typing import TYPE_CHECKING

from mimimi_core.config import NetworkConfig

if TYPE_CHECKING:
    from mimimi_core.network import build_network

# Before torch takes memory: maps of many MB then come in large pages, with a tenth of the faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["NetworkConfig", "build_network"]


def __getattr__(name: str) -> object:
    """Import torch, which takes seconds, only for those who build networks."""
    if name == "build_network":
        from mimimi_core.network import build_network

        return build_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
