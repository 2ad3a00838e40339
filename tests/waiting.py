"""How a test waits for what happens elsewhere."""

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], bool], timeout_s: float = 240.0, describe: Callable[[], str] = str
) -> None:
    """Look again until it holds; by default as long as a machine may take that is busy."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"did not happen in {timeout_s:.0f} s: {describe()}"
        time.sleep(0.05)
