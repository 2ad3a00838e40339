"""What clips cost: to pack, to open for a trial, and in memory where several trials run.

    python -m tests.bench.data [--quick]

Synthetic clips of 10 s. Packing is compared with reading the same files and doing nothing with
them, both with the files in the system's cache. A trial's process imports what a worker does, opens
the pack and reads every sample, as an epoch does; memory is what the kernel says of the process:
private, or proportional, where a page that several map counts for each in part, so that the sum
over processes counts the clips once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from mimimi_core.clips import find_clips
from mimimi_core.pack import open_pack, pack_clips
from tests.bench.stopwatch import Stopwatch, machine, record_clips

COUNTS = (1, 2, 4)


def memory() -> dict[str, float]:
    """Megabytes of this process: proportional, and private."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"pss": kilobytes["Pss"] / 1e3, "private": private / 1e3}


def serve(path: Path) -> None:
    """Be a trial's process: open the pack, then say at each line of stdin what memory it takes."""
    import search.trainable  # noqa: F401  # what a worker imports

    before = memory()
    started = time.perf_counter()
    pack = open_pack(path)
    opened = time.perf_counter() - started
    checksum = int(pack.samples.sum(dtype="int64"))
    after = memory()
    grown = after["private"] - before["private"]
    print(json.dumps({"open_ms": 1e3 * opened, "private_mb": grown, "sum": checksum}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(memory()), flush=True)


@contextmanager
def trial(path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.bench.data", "--serve", str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def together(path: Path, n: int) -> tuple[list[dict[str, Any]], float]:
    """What each of n trials' processes says of itself, and the proportional megabytes of all."""
    with ExitStack() as stack:
        processes = [stack.enter_context(trial(path)) for _ in range(n)]
        said = [answer(process) for process in processes]
        total = 0.0
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("?\n")
            process.stdin.flush()
            total += answer(process)["pss"]
    return said, total


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        record_clips(home, n_train=20 if args.quick else 400, n_test=4)
        clips = find_clips(home)["fan"]
        for number in range(2 if args.quick else 5):
            with watch.time("read"):
                n_bytes = sum(len(clip.path.read_bytes()) for clip in clips)
            with watch.time("pack"):
                path = pack_clips(clips, home / f"packs-{number}")
        size_mb = path.stat().st_size / 1e6
        found = {n: together(path, n) for n in COUNTS}
    said = [one for told, _ in found.values() for one in told]
    assert len({one["sum"] for one in said}) == 1
    total = {n: pss for n, (_, pss) in found.items()}
    result = {
        "clips": len(clips),
        "pack_mb": size_mb,
        "read_mb_per_s": n_bytes / 1e6 / watch.seconds("read"),
        "pack_mb_per_s": n_bytes / 1e6 / watch.seconds("pack"),
        "pack_to_read": watch.ratio("pack", "read"),
        "open_ms": median(one["open_ms"] for one in said),
        "private_mb_per_trial": median(one["private_mb"] for one in said),
        **{f"mb_of_{n}": value for n, value in total.items()},
        "mb_of_one_more": (total[4] - total[2]) / 2,
    }
    for name, value in result.items():
        print(f"{name:22}{value:10.2f}")
    print(json.dumps(result | machine()))


if __name__ == "__main__":
    main()
