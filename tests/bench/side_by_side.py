"""Lets a bench's tasks run side by side, and tells how many are done."""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Task], Result], tasks: Sequence[Task], what: str) -> list[Result]:
    """Results of `work` in the order of the tasks; `what` they are is shown on stderr."""
    # Processes, not threads: the Gaussian process of one search leaves other cores idle.
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(mp_context=context) as pool:
        for result in pool.map(work, tasks):
            results.append(result)
            shown = f"\r{len(results)} of {len(tasks)} {what}"
            print(shown, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results
