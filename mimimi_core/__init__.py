"""Machine-sound anomaly detection with complex networks: data, network, training, scoring.

Knows nothing of any search, cluster or tracker; `search` imports it, never the reverse.
"""

from mimimi_core.config import NetworkConfig
from mimimi_core.network import build_network

__all__ = ["NetworkConfig", "build_network"]
