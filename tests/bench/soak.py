"""A long search while something is killed every few seconds: does the invariant hold?

    python -m tests.bench.soak [--quick] [--trials 300]

Two machine types with tiny networks, on a Ray of one head that trains nothing and two workers of
one slot each. At random, from a seed: a trial's process is killed, or a worker's raylet with all
that it runs, and a new worker joins, or the search itself, whose command is then repeated. Once
all trials have ended nothing is killed any more. The end must be as `tests/invariant.py` says.

The driver's memory is its unique set. So that it is that of one process, the search itself is
killed only until the 50th trial has ended.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tests.audio_fixtures import write_dcase2020
from tests.invariant import Trials, check_invariant, open_journal, stored_trials

ROOT = Path(__file__).parents[2]
TYPES = ("fan", "valve")
WEIGHTS = {"trial": 8, "worker": 2, "driver": 1}
MEMORY_FROM = 50  # trials
MOST_S = 3600.0
_TRIAL = re.compile(r"ray::(ResourceTrainable|TrialRunner)")  # Ray's names for it in its life
SPACE = """
study: {{trials: {trials}, epochs: 3}}
sampler: {{name: tpe}}
scheduler: {{name: asha, grace_epochs: 1, reduction_factor: 2}}
confirmation: {{top: 1, seeds: 1}}
resources: {{cpu: 1}}
parameters:
  network.channels: {{kind: int, low: 2, high: 4}}
  network.depth: {{kind: fixed, value: 3}}
  network.attention: {{kind: bool}}
  frontend.n_fft: {{kind: fixed, value: 64}}
  frontend.hop: {{kind: fixed, value: 64}}
  frontend.n_frames: {{kind: fixed, value: 8}}
  train.lr: {{kind: float, low: 1e-3, high: 1e-2, log: true}}
  train.precision: {{kind: fixed, value: fp32}}
"""


class Soak:
    """The cluster, the search on it, and what was done to both."""

    def __init__(self, home: Path, trials: int, every_s: float, seed: int) -> None:
        from ray.cluster_utils import Cluster  # after RAY_TMPDIR is set

        self._rng, self._every_s = random.Random(seed), every_s
        self._home, self.asked = home, trials // len(TYPES)
        self.kills: Counter[str] = Counter()
        self.memory: list[tuple[int, float]] = []  # finished trials, MB of the driver
        for machine_type in TYPES:
            write_dcase2020(home / "data", machine_type, n_train=4, n_test=6)
        (home / "soak.yaml").write_text(SPACE.format(trials=self.asked))
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            self._cluster.add_node(num_cpus=1)
        self.storage: Any = None

    def run(self) -> dict[str, Any]:
        """Until the search has come to its end; the last line of its stdout, parsed."""
        earlier: Trials = {}
        started = told = time.monotonic()
        while True:
            driver = self._start()
            next_kill = time.monotonic() + self._pause()
            while driver.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if now > started + MOST_S:
                    driver.kill()
                    raise TimeoutError(f"the search did not end within {MOST_S:g} s")
                if now > told + 10:
                    told = now
                    self._measure(driver)
                    self._say(now - started)
                if now > next_kill and self._n_finished() < len(TYPES) * self.asked:
                    self._kill(driver)
                    next_kill = now + self._pause()
            stdout = (self._home / "stdout").read_text()
            if driver.returncode == 0:
                summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
                check_invariant(summary, self.storage, asked=self.asked, earlier=earlier)
                return summary
            if driver.returncode != -9:
                raise RuntimeError((self._home / "stderr").read_text()[-5000:])
            earlier = self._trials()

    def close(self) -> None:
        self._cluster.shutdown()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "search.run", "--study", "soak"]
        command += ["--space", str(self._home / "soak.yaml"), "--data", str(self._home / "data")]
        command += ["--out", str(self._home / "runs"), "--address", self._cluster.address]
        with (self._home / "stdout").open("w") as out, (self._home / "stderr").open("w") as err:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)

    def _kill(self, driver: "subprocess.Popen[bytes]") -> None:
        (what,) = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if what == "driver" and self._n_finished() >= MEMORY_FROM:
            what = "trial"
        if what == "driver":
            driver.kill()
        elif what == "worker":
            node = self._rng.choice(sorted(self._cluster.worker_nodes, key=lambda n: n.unique_id))
            self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.add_node(num_cpus=1)
        else:
            trials = [p for p in psutil.process_iter(["name"]) if self._is_trial(p)]
            if not trials:
                return
            self._rng.choice(sorted(trials, key=lambda p: p.pid)).kill()
        self.kills[what] += 1

    def _is_trial(self, process: psutil.Process) -> bool:
        """Whether it runs a trial on this cluster: Ray writes into its title what it is."""
        try:
            title = process.cmdline()
            raylet = process.parent()
            ours = {
                info.process.pid
                for node in self._cluster.worker_nodes
                for info in node.all_processes.get("raylet", [])
            }
            return (
                bool(title)
                and bool(_TRIAL.match(title[0]))
                and raylet is not None
                and raylet.pid in ours
            )
        except psutil.Error:
            return False

    def _trials(self) -> Trials:
        if self.storage is None and (self._home / "runs" / "soak" / "optuna.journal").exists():
            self.storage = open_journal(self._home / "runs", "soak")
        return stored_trials(self.storage, "soak") if self.storage else {}

    def _n_finished(self) -> int:
        return sum(t.state.is_finished() for found in self._trials().values() for t in found)

    def _measure(self, driver: "subprocess.Popen[bytes]") -> None:
        try:
            self.memory.append(
                (self._n_finished(), psutil.Process(driver.pid).memory_full_info().uss / 1e6)
            )
        except psutil.Error:
            return

    def _say(self, seconds: float) -> None:
        done = ", ".join(f"{n} {what}s" for what, n in sorted(self.kills.items()))
        memory = f"{self.memory[-1][1]:.0f} MB" if self.memory else "?"
        print(
            f"{seconds:5.0f} s: {self._n_finished()} of {len(TYPES) * self.asked} trials ended; "
            f"killed {done or 'nothing'}; driver {memory}",
            file=sys.stderr,
            flush=True,
        )

    def _pause(self) -> float:
        return self._rng.uniform(0.5, 1.5) * self._every_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 trials")
    parser.add_argument("--trials", type=int, default=300, help="of both machine types together")
    parser.add_argument("--every", type=float, default=6.0, help="seconds from kill to kill")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trials = 20 if args.quick else args.trials
    with tempfile.TemporaryDirectory(prefix="soak") as home:
        os.environ["RAY_TMPDIR"] = home
        started = time.monotonic()
        with closing(Soak(Path(home), trials, args.every, args.seed)) as soak:
            summary = soak.run()
            stored = [t for found in stored_trials(soak.storage, "soak").values() for t in found]
    before = [mb for ended, mb in soak.memory if ended >= MEMORY_FROM]
    result = {
        "trials": len(stored),
        "seconds": round(time.monotonic() - started),
        "killed": dict(soak.kills),
        "attempts": sum(t.user_attrs.get("attempts", 1) for t in stored),
        "failed": sum(v["failed"] for v in summary["machine_types"].values()),
        "driver_mb_at_50": round(before[0], 1) if before else None,
        "driver_mb_at_end": round(before[-1], 1) if before else None,
        "memory_ratio": round(before[-1] / before[0], 3) if before else None,
        "invariant": True,
    }
    for key, value in result.items():
        print(f"{key:18}{value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
