"""A real PostgreSQL: a cluster in a folder of its own, reached by a socket there, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import Self

_ROLE = "agentps"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; None where it is not installed. Debian has it on nobody's PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve()] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


class Server:
    """Not safe against a loss of power (`fsync=off`), which no test is about."""

    def __init__(self) -> None:
        folder = binaries()
        assert folder is not None
        self._binaries = folder
        self._folder = Path(tempfile.mkdtemp(prefix="agentps-postgresql-"))  # pytest's own is not open to other users
        self._numbers = count(1)
        self._user = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(self._folder, "postgres", "postgres")

    def __enter__(self) -> Self:
        try:
            self._call("initdb", "-D", self._data, "-U", _ROLE, "--auth=trust", "--encoding=UTF8", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        self._call(
            "pg_ctl", "-D", self._data, "-l", str(self._folder / "log"), "-o", options, "-w", "-t", "120", "start"
        )

    def stop(self) -> None:
        """At once, whoever is connected."""
        self._control("-m", "immediate", "stop")

    def new_database(self, *options: str) -> str:
        name = f"test_{next(self._numbers)}"
        self._call("createdb", "-h", str(self._folder), "-U", _ROLE, *options, name)
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://{_ROLE}@/{database}?host={self._folder}"

    def _control(self, *arguments: str) -> None:
        self._call("pg_ctl", "-D", self._data, "-w", "-t", "120", *arguments)

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / name), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,  # the server would keep a pipe open
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._user,  # type: ignore[call-overload]  # it refuses to run as root
        )
        assert done.returncode == 0, done.stdout
