"""`cluster/local.yaml` on the kit's hosts: `ray up`, searches, `ray down`, as in docs/cluster.md.

What differs from the file, and why:

- the addresses and the user, as the file asks;
- the first two setup commands, which need a package index: `~/venv` gets its packages from the
  interpreter of the tests instead, and ours from `~/mimimi-search`, as `pip install -e .` would;
- `--num-cpus=1`: each host believes that it has all cores of this machine for itself;
- `search/trainable.py` of the checkout that is sent gets `_PACE` appended, so that what happens
  during a search does not depend on how fast this machine trains.
"""

import json
import pickle
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from search.storages import JOURNAL
from tests.cluster.hosts import Host, Network
from tests.invariant import Trials, open_journal, stored_trials
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
HEAD, WORKERS, DESK = "head", ("worker-1", "worker-2"), "desk"
URI = "http://127.0.0.1:5000"  # MLflow, on the head
_VENV = r"""
test -x ~/venv/bin/ray || { %(python)s -m venv --without-pip ~/venv &&
printf '%%s\n' ~/mimimi-search %(packages)s > $(echo ~/venv/lib/python3*/site-packages)/kit.pth &&
for tool in ray mlflow; do
sed "1s,.*,#!$HOME/venv/bin/python," %(scripts)s/$tool > ~/venv/bin/$tool; done &&
chmod +x ~/venv/bin/ray ~/venv/bin/mlflow; }
"""
_PACE = """

def _paced(self, advance=TrialRunner._advance):
    import time
    from pathlib import Path

    started = time.monotonic()
    result = advance(self)
    while time.monotonic() < started + float(Path("/shared/pace").read_text()):
        time.sleep(0.1)
    return result


TrialRunner._advance = _paced
"""
_CHECK = """cd ~/mimimi-search && python -c '
import pickle, pathlib
from tests.invariant import check_invariant, open_journal
shared = pathlib.Path("/shared")
summary, earlier = pickle.loads((shared / "checked.pickle").read_bytes())
storage = open_journal(shared / "runs", summary["study"])
check_invariant(summary, storage, asked={asked}, earlier=earlier)'
"""


class Search:
    """A search that runs on the head; `wait` for its end."""

    def __init__(self, head: Host, study: str, options: str, number: int) -> None:
        self.study = study
        self._files = [head.folder / "home" / f"{study}-{number}.{end}" for end in ("out", "err")]
        script = (
            "cd ~/mimimi-search && exec python -m search.run --space spaces/smoke.yaml "
            f"--machine-types fan --study {study} {options} "
            f"--out /shared/runs --tracking-uri {URI} --address auto"
        )
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = head.start(script, out=out, err=err)

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._files[0].read_text().splitlines()[-1])
        return found

    def wait(self, timeout_s: float = 1500) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.study} does not end:\n{self.stderr}") from None


class Rack:
    """The hosts of `cluster/local.yaml`, switched on, and a desk from which they are commanded."""

    def __init__(self, network: Network) -> None:
        self.network = network
        hosts = {name: network.add(name) for name in (HEAD, *WORKERS)}
        self.desk = network.add(DESK, with_sshd=False)
        network.give_key(self.desk)
        checkout = self.desk.home / "mimimi-search"
        # What Ray would send: `ray up` reads all of its folder for changes, an own .venv, too.
        copy = ["rsync", "-a", "--filter=dir-merge,- .gitignore", f"{ROOT}/", f"{checkout}/"]
        subprocess.run(copy, check=True)
        with (checkout / "search" / "trainable.py").open("a") as file:
            file.write(_PACE)
        self.pace(0)
        path = checkout / "cluster" / "local.yaml"
        self._config = _patched(yaml.safe_load(path.read_text()), hosts)
        path.write_text(yaml.safe_dump(self._config))
        self._desk("ray get-auth-token --generate > /dev/null")
        self._searches = 0

    @property
    def head(self) -> Host:
        return self.network.hosts[HEAD]

    @property
    def workers(self) -> list[Host]:
        return [self.network.hosts[name] for name in WORKERS]

    def pace(self, seconds: float) -> None:
        """How long an epoch of a trial takes at least, from now on."""
        new = self.network.shared / "pace.new"
        new.write_text(str(seconds))
        new.rename(self.network.shared / "pace")

    def up(self) -> None:
        """`ray up`, and wait for all workers and for MLflow."""
        self._desk("ray up -y cluster/local.yaml", timeout_s=600)
        self.wait_for_mlflow()
        self.wait_for_nodes(1 + len(WORKERS))

    def down(self) -> None:
        """`ray down`, and wait until Ray has ended everywhere."""
        self._desk("ray down -y cluster/local.yaml", timeout_s=300)
        hosts = [host for host in (self.head, *self.workers) if host.is_running()]
        wait_until(lambda: not any(host.processes("[r]aylet") for host in hosts), 180)

    def stop_mlflow(self) -> None:
        """Kill the server on the head."""
        self.head.run("pkill -9 -f '[m]lflow'")
        wait_until(lambda: not self.head.processes("[m]lflow.server"), 30)

    def start_mlflow(self) -> None:
        """Start it with the command of the file."""
        self.head.run(self._config["head_start_ray_commands"][-1])
        self.wait_for_mlflow()

    def wait_for_mlflow(self) -> None:
        """Wait until the server on the head answers from its database, as a search wants it."""
        page = f"{URI}/api/2.0/mlflow/experiments/search?max_results=1"
        ask = f'import urllib.request as web; web.urlopen("{page}", timeout=60)'
        wait_until(
            lambda: "yes" in self.head.run(f"python -c '{ask}' && echo yes", check=False), 180
        )

    def n_nodes(self) -> int:
        """Hosts that Ray knows to be alive."""
        text = self.head.run("ray status", check=False)
        active = text.partition("Active:")[2].partition("Pending:")[0]
        return sum(int(n) for n in re.findall(r"^ (\d+) local\.cluster\.node", active, re.M))

    def wait_for_nodes(self, n: int, timeout_s: float = 300) -> None:
        """Wait until so many hosts are alive."""
        wait_until(lambda: self.n_nodes() == n, timeout_s, lambda: self.head.run("ray status"))

    def trials(self, study: str) -> Trials:
        """All trials of a study, as Optuna's journal has them now."""
        runs = self.network.shared / "runs"
        if not (runs / study / JOURNAL).exists():
            return {}
        return stored_trials(open_journal(runs, study), study)

    def check(self, search: Search, asked: int, earlier: Trials | None = None) -> None:
        """Hold an ended search against `tests.invariant`, on the head, where MLflow's server is."""
        summary = self.network.shared / "checked.pickle"
        summary.write_bytes(pickle.dumps((search.summary, earlier)))
        self.head.run(_CHECK.format(asked=asked), timeout_s=600)

    @contextmanager
    def searching(self, study: str, options: str) -> Iterator[Search]:
        """A search on the head, which is ended if the test leaves early."""
        self._searches += 1
        search = Search(self.head, study, options, self._searches)
        try:
            yield search
        finally:
            if search.process.poll() is None:
                self.head.run(f"pkill -9 -f '[s]earch.run .*{study}'", check=False)
                search.process.wait(60)

    def _desk(self, command: str, timeout_s: float = 120) -> str:
        tools = sysconfig.get_path("scripts")
        settings = f"PATH={tools}:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"
        script = f"cd ~/mimimi-search && export {settings} && {command}"
        return self.desk.run(script, timeout_s=timeout_s)


def trial_workers(host: Host) -> list[int]:
    """Processes on a host that have served trials, since its Ray was started."""
    latest = host.folder / "tmp" / "ray" / "session_latest"
    if not latest.is_symlink():
        return []
    session = latest.with_name(latest.readlink().name)  # it is absolute, for the host
    found = []
    for file in (session / "logs").glob("worker-*.out"):
        if "actor_name:TrialRunner" in file.read_text():
            found.append(int(file.stem.rpartition("-")[2]))
    return found


def _patched(config: dict[str, Any], hosts: dict[str, Host]) -> dict[str, Any]:
    config["provider"]["head_ip"] = hosts[HEAD].address
    config["provider"]["worker_ips"] = [hosts[name].address for name in WORKERS]
    config["auth"]["ssh_user"] = "root"
    packages = sysconfig.get_path("purelib")
    place = {
        "python": sys.executable,
        "packages": packages,
        "scripts": sysconfig.get_path("scripts"),
    }
    made, installed, *rest = config["setup_commands"]
    assert "venv" in made
    assert "pip install" in installed
    config["setup_commands"] = [" ".join((_VENV % place).split("\n")), *rest]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[key] = [
            line.replace("ray start ", "ray start --num-cpus=1 ") for line in config[key]
        ]
    return config
