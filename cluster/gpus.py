"""Ask the autoscaler for GPUs, on the head of a cluster.

    python cluster/gpus.py 4      # four; returns when the first one is there
    python cluster/gpus.py 0      # none: idle machines may go

A search takes what the cluster has and follows its growth, so the first GPU is enough to begin.
The wish stays until it is changed.
"""

import argparse
import time

import ray
from ray.autoscaler.sdk import request_resources

_POLL_S = 5.0


def ask(n_gpus: int) -> None:
    """Wish for `n_gpus` machines' worth of GPUs, on the connected cluster."""
    request_resources(bundles=[{"GPU": 1}] * n_gpus)


def wait_for_one(poll_s: float = _POLL_S) -> None:
    """Return when the connected cluster has a GPU."""
    while not ray.cluster_resources().get("GPU", 0):
        time.sleep(poll_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gpus", type=int, help="how many; 0 to let them go")
    n_gpus = parser.parse_args().gpus
    ray.init("auto", log_to_driver=False)
    ask(n_gpus)
    if n_gpus:
        print("waiting for the first GPU; `ray status` shows what is on its way", flush=True)
        wait_for_one()
