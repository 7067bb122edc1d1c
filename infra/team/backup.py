"""A back-up of the team's stack, taken while it runs, and a stack that is made of one.

First the databases, then the objects: what a database names was stored before, is never changed, and so is in the
back-up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from infra.team import setup
from infra.team.databases import DATABASES, binary
from infra.team.servers import BUCKETS, stores
from infra.team.state import State, TeamError, exists, load
from infra.team.supervisor import up
from model.files import replacing, write_whole
from model.integrity import sha256_of

_MANIFEST = "manifest.json"
#: Beside the databases: which stack it is, who may send posts, people's variables.
_FILES = ("secrets.json", "team.yaml", "home/keys.yaml", "users")


def back_up(state: State, target: Path) -> str:
    """Copy into `target`, which must not be there; returns what was copied, in words.

    Raises: TeamError where something cannot be read.
    """
    target = target.absolute()
    if target.exists():
        raise TeamError(f"{target} is there: name a new folder")
    with replacing(target) as part:
        part.mkdir(mode=0o700)
        for name, role in DATABASES.items():
            dump = [*_postgresql(state, "pg_dump", name, role), "--format=custom", "--no-owner"]
            dump.append(f"--file={part / name}")
            _call(dump, {"PGPASSWORD": state.secrets[f"postgresql_{role}"]})
        dump = [*_mariadb(state, "mariadb-dump"), "--single-transaction", f"--result-file={part / 'zenml'}", "zenml"]
        _call(dump, {"MYSQL_PWD": state.secrets["mariadb_zenml"]})
        objects = _download(part / "objects")
        for name in _FILES:
            _copy(state.folder / name, part / name)
        files = {str(path.relative_to(part)): sha256_of(path) for path in sorted(part.rglob("*")) if path.is_file()}
        write_whole(part / _MANIFEST, json.dumps(files, indent=0))
    return f"{len(DATABASES) + 1} databases, {objects:,} objects, secrets among them: keep it as you keep those"


def restore(source: Path, folder: Path) -> Path:
    """Make the stack of `folder`, where none is yet, of the back-up `source`.

    Raises: TeamError where a file of the back-up is missing or changed, or a stack is there.
    """
    if exists(folder) or (folder.exists() and any(folder.iterdir())):
        raise TeamError(f"{folder} is not empty: move it away, or name another folder by AGENTPS_TEAM")
    _check(source)
    try:
        for name in _FILES:
            _copy(source / name, folder / name)
        state = load(folder)
        setup.enter(state)
        with up(state, stores(state)):
            for name, role in DATABASES.items():
                put = [*_postgresql(state, "pg_restore", name, role), "--no-owner", "--exit-on-error"]
                put.append(str(source / name))
                _call(put, {"PGPASSWORD": state.secrets[f"postgresql_{role}"]})
            put = [*_mariadb(state, "mariadb"), "zenml"]
            _call(put, {"MYSQL_PWD": state.secrets["mariadb_zenml"]}, source / "zenml")
            _upload(source / "objects")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing was there
        raise
    return folder


def _check(source: Path) -> None:
    try:
        expected: dict[str, str] = json.loads((source / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeamError(f"{source}: no back-up: {_MANIFEST} cannot be read ({error})") from error
    for name, digest in expected.items():
        if not (source / name).is_file() or sha256_of(source / name) != digest:
            raise TeamError(f"{source / name} is missing or was changed: take another back-up")


def _copy(path: Path, target: Path) -> None:
    if not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy2(path, target)  # with its mode


def _postgresql(state: State, program: str, database: str, role: str) -> list[str]:
    where = ["--host=127.0.0.1", f"--port={state.ports['postgresql']}", f"--username={role}"]
    return [str(binary(program)), *where, f"--dbname={database}"]


def _mariadb(state: State, program: str) -> list[str]:
    where = ["--host=127.0.0.1", f"--port={state.ports['mariadb']}", "--user=zenml"]
    return [str(binary(program)), "--no-defaults", *where]


def _call(command: list[str], environment: dict[str, str], reads: Path = Path(os.devnull)) -> None:
    with reads.open("rb") as given:
        done = subprocess.run(command, env=os.environ | environment, stdin=given, capture_output=True, check=False)
    if done.returncode:
        raise TeamError(f"{Path(command[0]).name}: {done.stderr.decode(errors='replace').strip()[-600:]}")


def _client() -> Any:
    import boto3

    return boto3.client("s3")


def _download(folder: Path) -> int:
    client, count = _client(), 0
    for bucket in BUCKETS:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", []):
                if found["Key"].endswith("/"):
                    continue  # a folder, as SeaweedFS lists an empty one
                path = folder / bucket / found["Key"]
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, found["Key"], str(path))
                count += 1
    return count


def _upload(folder: Path) -> None:
    client = _client()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket, _, key = path.relative_to(folder).as_posix().partition("/")
            client.upload_file(str(path), bucket, key)
