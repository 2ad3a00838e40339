"""Withdraws a search's wish for machines if the search is killed: else they would stay, and cost.

    python -m search.wish_guard ADDRESS     # of Ray; acts when its stdin ends without a word

It waits as long as the search runs, so it imports Ray only when it has to act.
"""

import sys

DONE = b"done"  # the search has withdrawn its wish itself


def withdraw(address: str) -> None:
    """Ask the autoscaler of the cluster at that address for nothing."""
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address, log_to_driver=False)
    request_resources(bundles=[])


if __name__ == "__main__" and sys.stdin.buffer.read() != DONE:
    withdraw(sys.argv[1])
