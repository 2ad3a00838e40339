"""The kit itself: hosts are apart, can be cut off, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.hosts import Host, network
from tests.cluster.rack import ROOT
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

STORY = """
import signal, sys
from pathlib import Path
# In the background of a shell Ctrl-C is ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.cluster.hosts import network
with network(Path(sys.argv[1])) as net:
    host = net.add("one")
    print(host.pid, flush=True)
    signal.pause()
"""


def answers(host: Host, other: Host) -> bool:
    """Whether another host's sshd says who it is, within two seconds."""
    look = f"timeout 2 bash -c 'read -r line < /dev/tcp/{other.address}/22; echo $line'"
    return host.run(look, check=False).startswith("SSH-")


def test_hosts_reach_each_other_and_can_be_cut_off(tmp_path: Path) -> None:
    with network(tmp_path / "net") as net:
        one, two = net.add("one"), net.add("two")
        assert one.run("hostname; touch /tmp/mine /shared/ours").strip() == "one"
        assert two.run("ls /tmp/mine /shared/*", check=False).split() == ["/shared/ours"]
        assert two.processes("sshd") != []
        assert "Read-only" in two.run("touch /etc/mine 2>&1", check=False)
        wait_until(lambda: answers(one, two), 30)
        net.cut(two)
        assert not answers(one, two)
        net.join(two)
        wait_until(lambda: answers(one, two), 30)
        two.kill()
        assert not answers(one, two)
        assert net.add("two").run("hostname").strip() == "two"
        wait_until(lambda: answers(one, net.hosts["two"]), 30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_however_the_tests_end(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STORY, str(tmp_path / "net")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        first = int(process.stdout.readline())
        inside = Path(f"/proc/{first}/ns/pid").readlink()
        assert len(processes_in(inside)) > 1
        process.send_signal(number)
        process.wait(30)
    wait_until(lambda: not processes_in(inside), 30)


def processes_in(namespace: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/ns/pid"):
        try:
            if entry.readlink() == namespace:
                found.append(int(entry.parts[2]))
        except OSError:  # it has ended
            continue
    return found


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosts.missing() is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (hosts.missing() or "")
    monkeypatch.setattr(hosts, "_which", lambda tool: None if tool == "sshd" else tool)
    assert (hosts.missing() or "").endswith("apt-get install openssh-server")
