"""PostgreSQL and MariaDB of Debian, each in a folder of the stack; made once, their passwords set at each start."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from infra.team.state import State, TeamError
from model.files import replacing, write_whole

#: Database -> the role that owns it.
DATABASES = {"mlflow": "mlflow", "mlflow_auth": "mlflow", "scores": "agentps", "ledger": "agentps"}


def binary(name: str) -> str | None:
    """The path of a program; Debian has those of servers on nobody's PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(places[-1]) if places else shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def as_user(name: str) -> list[str]:
    """What comes before a command so that it runs as Debian's user of that server; where root starts the stack."""
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups"]


def _own(folder: Path, user: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.getuid() == 0:
        found = pwd.getpwnam(user)
        os.chown(folder, found.pw_uid, found.pw_gid)


def _call(command: list[str], what: str, sql: str = "") -> None:
    done = subprocess.run(
        command, input=sql, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd="/"
    )
    if done.returncode or "ERROR:" in done.stdout:
        raise TeamError(f"{what}: {' '.join(done.stdout.split())[-600:] or f'exit code {done.returncode}'}")


def prepare_postgresql(state: State) -> Path:
    """The folder of its data. To be called while the server is down.

    Raises: TeamError where it cannot be made.
    """
    data = state.folder / "postgresql"
    user = as_user("postgres")
    if not data.exists():
        _may_enter(state.folder, "postgres")
        with replacing(data) as part:
            _own(part, "postgres")
            initdb = [*user, str(binary("initdb")), "-D", str(part), "-U", "postgres", "--encoding=UTF8"]
            _call([*initdb, "--locale=C.UTF-8", "--auth=scram-sha-256", "--auth-local=reject"], "PostgreSQL")
            roles = [f"CREATE ROLE {role} LOGIN" for role in sorted(set(DATABASES.values()))]
            made = [f"CREATE DATABASE {name} OWNER {role}" for name, role in DATABASES.items()]
            # which databases there are is nobody's business: without it every role may connect to each
            closed = [f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC" for name in (*DATABASES, "postgres")]
            _single(state, part, roles + made + closed)
    _forget_the_dead(data)
    passwords = {role: state.secrets[f"postgresql_{role}"] for role in DATABASES.values()}
    _single(state, data, [f"ALTER ROLE {role} PASSWORD '{password}'" for role, password in passwords.items()])
    return data


def _forget_the_dead(data: Path) -> None:
    """A machine that lost power leaves the number of the server's process, which another process may have now.

    PostgreSQL would not start then, and asks for its file to be removed by hand.
    """
    pid = data / "postmaster.pid"
    with suppress(FileNotFoundError, ProcessLookupError):
        number = pid.read_text(encoding="utf-8").split("\n", 1)[0]
        if os.fsencode(data) not in Path(f"/proc/{number}/cmdline").read_bytes():
            pid.unlink()


def _single(state: State, data: Path, statements: list[str]) -> None:
    """As the superuser, who has no password and so can never connect: by the server's own mode for one user."""
    command = [*as_user("postgres"), str(binary("postgres")), "--single", "-D", str(data), "postgres"]
    _call(command, f"PostgreSQL in {state.folder}", "".join(f"{statement}\n" for statement in statements))


def prepare_mariadb(state: State) -> Path:
    """As `prepare_postgresql`; `init.sql` beside the data is for the option `--init-file`."""
    data, sql = state.folder / "mariadb", state.folder / "mariadb" / "init.sql"
    if not data.exists():
        _may_enter(state.folder, "mysql")
        with replacing(data) as part:
            _own(part, "mysql")
            install = [str(binary("mariadb-install-db")), "--no-defaults", f"--datadir={part}"]
            install += ["--auth-root-authentication-method=socket", "--skip-test-db"]
            _call([*as_user("mysql"), *install], "MariaDB")
    password = state.secrets["mariadb_zenml"]
    statements = [
        "CREATE DATABASE IF NOT EXISTS zenml",
        "CREATE USER IF NOT EXISTS 'zenml'@'127.0.0.1'",
        f"ALTER USER 'zenml'@'127.0.0.1' IDENTIFIED BY '{password}'",
        "GRANT ALL ON zenml.* TO 'zenml'@'127.0.0.1'",
    ]
    write_whole(sql, "".join(f"{statement};\n" for statement in statements), private=True)
    if os.getuid() == 0:
        shutil.chown(sql, "mysql", "mysql")
    return data


def _may_enter(folder: Path, user: str) -> None:
    """Where root starts the stack, its servers' users must come as far as their folders."""
    if os.getuid() != 0:
        return
    folder.chmod(0o711)
    done = subprocess.run([*as_user(user), "test", "-x", str(folder)], check=False)
    if done.returncode:
        raise TeamError(
            f"{folder}: the user {user}, as which root starts that server, cannot enter it: set AGENTPS_TEAM to "
            "a folder such as /var/lib/agentps-team, or run as a user of your own"
        )
