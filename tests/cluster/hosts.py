"""Hosts on one machine: Linux namespaces joined by a bridge, to be cut off and killed at will.

A host has its own address, hostname, processes, root folder, /tmp, /run, /dev/shm and home, and an
sshd; it shares the kernel, the rest of the file system (read-only), the interpreter of the tests,
and with the other hosts one folder, /shared, as machines share a network folder. All hosts and the
bridge live in namespaces of their own, so two kits never meet, and the kernel ends them with
this process, whatever ends it. Needs root; `missing` says what else.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

_INIT = Path(__file__).with_name("host_init.sh")
_HOME = Path(pwd.getpwuid(0).pw_dir)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS = {  # -> Debian's package
    "ip": "iproute2",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "unshare": "util-linux",
}
_NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")
_SSHD = """\
HostKey {home}/.ssh/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 100
PidFile /run/sshd.pid
"""


def missing() -> str | None:
    """Why there can be no hosts here and how to change that, or None."""
    if sys.platform != "linux":
        return "cluster tests need Linux"
    absent = sorted({package for tool, package in _TOOLS.items() if not _which(tool)})
    if absent:
        return f"cluster tests need {', '.join(absent)}: apt-get install {' '.join(absent)}"
    if os.geteuid() != 0:
        return "cluster tests need root, to make network namespaces: sudo make cluster-test"
    command = ["unshare", *_NAMESPACES, "--fork", "ip", "link", "add", "x0", "type", "bridge"]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        return (
            "cluster tests need network namespaces and a bridge, which this machine refuses "
            f"(in a container: docker run --privileged): {tried.stderr.strip()}"
        )
    return None


class Host:
    """One machine of the kit; made by `Network.add`."""

    def __init__(
        self, name: str, address: str, folder: Path, init: "subprocess.Popen[str]"
    ) -> None:
        self.name, self.address, self.folder = name, address, folder
        self._init = init
        assert init.stdout
        line = init.stdout.readline()
        assert line, f"{name} did not start: see what {_INIT.name} wrote to stderr"
        self.pid = int(line)

    @property
    def home(self) -> Path:
        """The home folder of its user, as seen from outside."""
        return self.folder / "home"

    def command(self, script: str) -> list[str]:
        """The command, for this machine, that runs a shell script there with a login's settings."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES]
        settings = [f"HOME={_HOME}", f"PATH={_PATH}", "USER=root", "LANG=C.UTF-8"]
        script = f"cd; [ ! -e .bashrc ] || . ./.bashrc; {script}"
        return [*enter, "env", "-i", *settings, "bash", "-c", script]

    def run(self, script: str, *, check: bool = True, timeout_s: float = 120) -> str:
        """Standard output of a shell script on the host, whatever its network does.

        Raises:
            RuntimeError: It failed, with all that it printed.
        """
        ran = subprocess.run(
            self.command(script), capture_output=True, text=True, timeout=timeout_s
        )
        if check and ran.returncode:
            raise RuntimeError(
                f"{self.name}: {script!r} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
            )
        return ran.stdout

    def start(self, script: str, *, out: IO[str], err: IO[str]) -> "subprocess.Popen[str]":
        """A shell script on the host, running."""
        return subprocess.Popen(self.command(script), stdout=out, stderr=err, text=True)

    def processes(self, pattern: str) -> list[int]:
        """Ids, as the host counts, of processes whose command line matches."""
        return [int(pid) for pid in self.run(f"pgrep -f '{pattern}'", check=False).split()]

    def is_running(self) -> bool:
        """Whether the machine is on."""
        return self._init.poll() is None

    def kill(self) -> None:
        """End the machine and all it runs, at once."""
        self._init.kill()
        self._init.wait()


class Network:
    """A bridge and the hosts on it; see `network`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self.hosts: dict[str, Host] = {}
        keys = folder / "keys"
        keys.mkdir()
        for key in ("user", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / key)]
            subprocess.run(command, check=True)
        # It has no use for a root of its own, but it, too, ends with this process.
        script = "ip link add bridge type bridge && ip link set bridge up && echo $$ && read -r _"
        self._switch = self._spawn(["unshare", "--net", "bash", "-c", script])
        assert self._switch.stdout
        assert self._switch.stdout.readline(), "no bridge"

    def add(self, name: str, *, with_sshd: bool = True) -> Host:
        """A machine, switched on; it replaces one of the same name, which must be off.

        Args:
            name: Its hostname; the order of first additions gives the addresses.
            with_sshd: False for one that nobody logs into.
        """
        known = self.hosts.get(name)
        assert known is None or not known.is_running(), f"{name} is on"
        number = list(self.hosts).index(name) + 1 if known else len(self.hosts) + 1
        folder = self._folder / name
        if folder.exists():
            folder.rename(folder.with_name(f"{name}.until-{os.urandom(4).hex()}"))
        for part in ("home/.ssh", "tmp", "run/sshd", "root"):
            (folder / part).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        ssh = folder / "home" / ".ssh"
        ssh.chmod(0o700)
        (folder / "home" / ".bashrc").touch()
        init = self._spawn(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child", "bash", str(_INIT), name]
            + [str(folder), str(_HOME), str(self.shared), *map(str, _kept())]
        )
        host = Host(name, f"10.0.0.{number}", folder, init)
        self.hosts[name] = host
        self._plug_in(host)
        if with_sshd:
            shutil.copy(self._folder / "keys" / "user.pub", ssh / "authorized_keys")
            shutil.copy(self._folder / "keys" / "host", ssh / "host_key")
            (folder / "run" / "sshd.conf").write_text(_SSHD.format(home=_HOME))
            host.run("/usr/sbin/sshd -f /run/sshd.conf")
        return host

    def give_key(self, host: Host) -> None:
        """Let a host log in to the others."""
        shutil.copy(self._folder / "keys" / "user", host.home / ".ssh" / "id_ed25519")

    def cut(self, host: Host) -> None:
        """Pull a host's cable: nothing is refused, packets get lost."""
        self._on_switch("ip", "link", "set", host.name, "down")

    def join(self, host: Host) -> None:
        """Plug it in again."""
        self._on_switch("ip", "link", "set", host.name, "up")

    def _plug_in(self, host: Host) -> None:
        with suppress(subprocess.CalledProcessError):  # the kernel may not have removed it yet
            self._on_switch("ip", "link", "delete", host.name)
        # A new machine under an old address would announce its card; here it keeps the card.
        card = f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"
        end = ["name", "eth0", "address", card, "netns", str(host.pid)]
        self._on_switch("ip", "link", "add", host.name, "type", "veth", "peer", *end)
        self._on_switch("ip", "link", "set", host.name, "master", "bridge", "up")
        host.run(f"ip address add {host.address}/24 dev eth0 && ip link set eth0 up")

    def _on_switch(self, *command: str) -> None:
        enter = ["nsenter", "--target", str(self._switch.pid), "--net", *command]
        subprocess.run(enter, check=True, capture_output=True)

    def _spawn(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """A process that ends when our end of its standard input is closed."""
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, process)
        return process


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A bridge without hosts; it and whatever is added is gone in the end.

    Args:
        folder: New; keeps what the hosts wrote.
    """
    with ExitStack() as stack:
        yield Network(folder, stack)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        pipe.close()


def _kept() -> list[Path]:
    """Folders of the interpreter, outermost first.

    They may lie in /tmp or the home, which a host has of its own, and stay writable, because numba
    compiles for 20 s where it cannot find or write its cache beside the packages.
    """
    return sorted({Path(sys.prefix), Path(sys.base_prefix)})


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_PATH}")
