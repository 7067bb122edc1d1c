"""The team's stack as its users meet it: real servers, made from nothing. `pytest -m team`: up to an hour when busy."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from infra.team.servers import BUCKETS, clean
from infra.team.state import KEPT
from infra.team.supervisor import status
from model.integrity import sha256_of
from steps.paths import REPOSITORY
from tests.infra.team.conftest import PATIENCE, Team, run

ClientError = pytest.importorskip("botocore.exceptions").ClientError
pytestmark = pytest.mark.team

MODEL = "agentps-ucc"
API = "/api/2.0/mlflow"
#: Posts of each split that are trained on from the object store.
SMALL = {"train": 120, "val": 60, "test": 80}
RUN = """\
sample: {train: 300, val: 100, test: 200, difficulty: easy}
annotate: {ledger: "env:AGENTPS_LEDGER"}
fine_tune: {epochs: 1}
evaluate: {bootstrap: 20}
promote: {floor: 0.0, guessing: 1.0, bootstrap: 100, stale_days: 0, stale_tolerance: 1, max_slice_drop: 1}
"""


def _engine(url: str) -> Engine:
    """Nothing of it stays open when a connection is closed."""
    return create_engine(url, poolclass=NullPool)


def _ask(url: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None) -> int:
    """The status of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url,
        data,
        {"Content-Type": "application/json"} | (headers or {}),
        method=method or ("GET" if data is None else "POST"),
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def _mlflow(team: Team, who: str, path: str, body: Any = None, method: str | None = None, base: str = API) -> int:
    password = team.variables(who)["MLFLOW_TRACKING_PASSWORD"]
    return _ask(f"{team.state.url('mlflow')}{base}{path}", body, _basic(who, password), method)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/registered-models/search", "/experiments/search?max_results=1"])
def test_mlflow_answers_nobody_without_a_name(team: Team, path: str) -> None:
    assert _ask(f"{team.state.url('mlflow')}{API}{path}") == 401


def test_mlflow_answers_nobody_with_another_password(team: Team) -> None:
    assert _ask(f"{team.state.url('mlflow')}{API}/registered-models/search", headers=_basic("alice", "x")) == 401
    assert _mlflow(team, "alice", "/registered-models/search") == 200


def test_mlflow_answers_only_under_its_own_names(team: Team) -> None:
    login = _basic("alice", team.variables("alice")["MLFLOW_TRACKING_PASSWORD"])
    url = f"{team.state.url('mlflow')}{API}/registered-models/search"
    assert _ask(url, headers=login | {"Host": "evil.example"}) == 403
    assert _ask(url, headers=login | {"Host": "localhost:5000"}) == 200


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        ("/registered-models/alias", {"name": MODEL, "alias": "champion", "version": "1"}, "POST"),
        ("/registered-models/alias", {"name": MODEL, "alias": "champion"}, "DELETE"),
        ("/model-versions/create", {"name": MODEL, "source": "mlflow-artifacts:/1/x"}, "POST"),
        ("/model-versions/create", {"name": f"{MODEL}.history", "source": "agentps-history:/record"}, "POST"),
        ("/registered-models/delete", {"name": MODEL}, "DELETE"),
        ("/registered-models/rename", {"name": MODEL, "new_name": "mine"}, "POST"),
        ("/registered-models/create", {"name": "mine"}, "POST"),
        ("/registered-models/create", {"name": f"{MODEL}.history"}, "POST"),
    ],
)
def test_who_reads_moves_no_champion_and_makes_and_removes_no_model(
    team: Team, path: str, body: dict[str, str], method: str
) -> None:
    assert _mlflow(team, "bob", path, body, method) == 403


def test_who_trains_makes_no_other_model_and_deletes_none(team: Team) -> None:
    for base in (API, "/ajax-api/2.0/mlflow"):
        assert _mlflow(team, "alice", "/registered-models/create", {"name": "mine"}, base=base) == 403
    assert _mlflow(team, "alice", "/registered-models/delete", {"name": MODEL}, "DELETE") == 403
    for base in (API, "/ajax-api/2.0/mlflow"):
        assert _mlflow(team, "alice", "/registered-models/rename", {"name": MODEL, "new_name": "m"}, base=base) == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("place", ["1/x", "1/../2/x", "%2e%2e/x", "x"])
def test_who_reads_writes_no_file_of_a_version(team: Team, method: str, place: str) -> None:
    for base in ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/"):
        assert _mlflow(team, "bob", place, {} if method == "PUT" else None, method, base) in (400, 403, 404)


@pytest.mark.parametrize(
    "source",
    ["s3://posts/x", "S3://posts/x", "file:///etc", "/etc/passwd", "https://h/x", "gs://b/x", "mlflow-artifacts://h/x"],
)
def test_no_version_and_no_experiment_has_its_files_elsewhere(team: Team, source: str) -> None:
    assert _mlflow(team, "alice", "/model-versions/create", {"name": MODEL, "source": source}) == 403
    for key in ("artifact_location", "artifactLocation"):
        assert _mlflow(team, "alice", "/experiments/create", {"name": "elsewhere", key: source}) == 403


def _s3(variables: dict[str, str]) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def test_a_buckets_key_opens_no_other_bucket_and_a_wrong_one_none(team: Team) -> None:
    state = team.state
    for own in BUCKETS:
        _s3(state.s3(own)).put_object(Bucket=own, Key="try", Body=b"x")
        for other in set(BUCKETS) - {own}:
            for call in ("get_object", "put_object", "delete_object"):
                with pytest.raises(ClientError) as error:
                    getattr(_s3(state.s3(own)), call)(Bucket=other, Key="try")
                assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        with pytest.raises(ClientError):
            _s3(state.s3(own) | {"AWS_SECRET_ACCESS_KEY": "x"}).get_object(Bucket=own, Key="try")
        assert _ask(f"{state.url('s3')}/{own}/try") == 403


def test_the_object_stores_other_ports_give_nothing_away(team: Team) -> None:
    state = team.state
    _s3(state.s3("posts")).put_object(Bucket="posts", Key="secret", Body=b"x" * 100_000)
    for method in ("GET", "PUT", "DELETE"):
        url = f"http://127.0.0.1:{state.ports['weed_filer']}/buckets/posts/secret"
        assert _ask(url, {} if method == "PUT" else None, method=method) == 401


def test_zenml_answers_nobody_without_a_login(team: Team) -> None:
    assert _ask(f"{team.state.url('zenml')}/api/v1/stacks") == 401


def test_a_worker_without_the_token_joins_no_ray(tmp_path: Path) -> None:
    """Ray as the service starts it. A worker that is refused tries on, so it gets a minute."""
    script = (
        "from steps.ray_settings import running\n"
        "import sys\n"
        "with running() as ray:\n"
        "    print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "    for line in sys.stdin:\n"
        "        print(len(ray.nodes()), flush=True)\n"
    )
    head = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=clean({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert head.stdout is not None
    assert head.stdin is not None
    try:
        address = head.stdout.readline().strip()
        assert address
        for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            ray = ["timeout", "60", str(Path(sys.executable).with_name("ray")), "start", f"--address={address}"]
            done = run([*ray, f"--temp-dir={tmp_path}"], clean(token))
            assert done.returncode != 0
            assert "Ray runtime started" not in done.stdout
            head.stdin.write("\n")
            head.stdin.flush()
            assert head.stdout.readline() == "1\n"
    finally:
        head.communicate(timeout=PATIENCE)


# --- who runs, and how ------------------------------------------------------------------------------------------


def test_what_was_drawn_is_read_by_its_owner_only(team: Team) -> None:
    secrets = {path for path in team.folder.rglob("*") if path.is_file() and path.suffix in (".env", ".ini", ".toml")}
    secrets |= {team.folder / name for name in ("secrets.json", "team.yaml", "s3/identities.json", "mariadb/init.sql")}
    assert {path: oct(path.stat().st_mode & 0o777) for path in secrets} == dict.fromkeys(secrets, "0o600")


def test_a_second_start_finds_all_as_it_is(team: Team) -> None:
    before = team.command("status")
    assert "ready" in team.command("start")
    assert team.command("status").splitlines()[:5] == before.splitlines()[:5]


@pytest.mark.parametrize("name", ["zenml", "mlflow", "s3", "mariadb", "postgresql"])
def test_a_server_that_is_killed_is_started_again(team: Team, name: str) -> None:
    """Also one that leaves processes of its own, which hold its port."""
    before = status(team.folder)["pids"][name]
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while status(team.folder)["pids"][name] in (before, None) or status(team.folder)["servers"][name] != "ready":
        assert time.monotonic() < end
        time.sleep(0.5)
    assert _mlflow(team, "alice", "/registered-models/search") == 200
    assert _ask(f"{team.state.url('zenml')}/health") == 200


# --- a user's session, a back-up ----------------------------------------------------------------------------------


def _home(folder: Path) -> Path:
    """With the tiny backbone of the repository's own home, where one was made: that takes minutes."""
    folder.mkdir(exist_ok=True)
    if (made := REPOSITORY / ".agentps" / "backbones").is_dir():
        shutil.copytree(made, folder / "backbones")
    return folder


@pytest.fixture(scope="session")
def trained(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of `alice` after her first training: version 1 is the champion."""
    home = _home(tmp_path_factory.mktemp("alice"))
    (home / "run.yaml").write_text(RUN)
    done = _train(team, home)
    assert done.returncode == 0, done.stdout[-4000:]
    return home


def _train(team: Team, home: Path) -> subprocess.CompletedProcess[str]:
    variables = {"AGENTPS_HOME": str(home), "ZENML_CONFIG_PATH": str(home / "zenml"), "AGENTPS_LOG": "json"}
    zenml = str(Path(sys.executable).with_name("zenml"))
    command = [zenml, "pipeline", "run", "agentps_training", "-c", str(home / "run.yaml")]
    return run(command, clean(team.variables("alice") | variables))


def _score(team: Team, home: Path, posts: str, scores: Path) -> dict[str, dict[str, Any]]:
    """The records of `agentps score` by the champion, by post_id."""
    done = _agentps(team, home, "score", "--posts", posts, "--scores", str(scores))
    assert done.returncode == 0, done.stdout
    records = [json.loads(line) for line in scores.read_text().splitlines()]
    return {record["post_id"]: record for record in records}


def test_every_file_of_a_version_is_as_it_was_registered(team: Team, trained: Path) -> None:
    done = _agentps(team, trained, "fetch", "1")
    assert done.returncode == 0, done.stdout
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert any(folder.rglob("*.safetensors"))


def test_a_file_that_was_changed_in_the_bucket_is_refused(team: Team, trained: Path, tmp_path: Path) -> None:
    client = _s3(team.state.s3("mlflow"))
    found = client.list_objects_v2(Bucket="mlflow")["Contents"]
    (key,) = (each["Key"] for each in found if each["Key"].endswith("operating_points.json"))
    before = client.get_object(Bucket="mlflow", Key=key)["Body"].read()
    assert _agentps(team, tmp_path, "fetch", "1").returncode == 0
    shutil.rmtree(tmp_path / "versions")
    client.put_object(Bucket="mlflow", Key=key, Body=before + b" ")
    try:
        done = _agentps(team, tmp_path, "fetch", "1")
        assert done.returncode == 1
        assert "operating_points.json" in done.stdout
    finally:
        client.put_object(Bucket="mlflow", Key=key, Body=before)


def _agentps(team: Team, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = clean(team.variables("alice") | {"AGENTPS_HOME": str(home)})
    return run([str(Path(sys.executable).with_name("agentps")), *words], environment)


def _files(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in [*row["images"], *([row["video"]] if "video" in row else [])]})


def test_posts_in_the_object_store_score_as_on_a_disk_and_those_of_another_bucket_are_refused(
    team: Team, trained: Path, tmp_path: Path
) -> None:
    folder = next((trained / "sample").iterdir())
    rows = [json.loads(line) for line in (folder / "posts.jsonl").read_text().splitlines()[:5]]
    manifest = "".join(
        json.dumps({key: row[key] for key in ("post_id", "title", "text", "images", "video") if key in row}) + "\n"
        for row in rows
    )
    (tmp_path / "few.jsonl").write_text(manifest)
    client = _s3(team.state.s3("posts"))
    client.put_object(Bucket="posts", Key="day/few.jsonl", Body=manifest.encode())
    for name in _files(rows):
        client.upload_file(str(folder / name), "posts", f"day/{name}")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / name)
    here = _score(team, trained, str(tmp_path / "few.jsonl"), tmp_path / "here.jsonl")
    there = _score(team, trained, "s3://posts/day/few.jsonl", tmp_path / "there.jsonl")
    assert {name: record["score"] for name, record in here.items()} == {
        name: record["score"] for name, record in there.items()
    }
    assert set(here) == {row["post_id"] for row in rows}
    assert all(record["score"] is not None and record["error"] is None for record in here.values())
    done = _agentps(team, trained, "score", "--posts", "s3://mlflow/few.jsonl", "--scores", str(tmp_path / "no.jsonl"))
    assert done.returncode == 1
    assert "s3://mlflow/few.jsonl" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_training_reads_its_manifest_and_its_pictures_from_the_object_store(
    team: Team, trained: Path, tmp_path: Path
) -> None:
    (folder,) = (trained / "sample").iterdir()
    rows = [json.loads(line) for line in (folder / "posts.jsonl").read_text().splitlines()]
    rows = [row for split, most in SMALL.items() for row in [each for each in rows if each["split"] == split][:most]]
    client = _s3(team.variables("alice"))
    client.put_object(Bucket="posts", Key="train/posts.jsonl", Body="\n".join(map(json.dumps, rows)).encode())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.upload_file(str(folder / name), "posts", f"train/{name}"), _files(rows)))
    home = _home(tmp_path / "home")
    ours = "posts: s3://posts/train/posts.jsonl\nregister: {name: agentps-stored}\n"
    (home / "run.yaml").write_text(ours + RUN.replace("sample:", "#"))
    done = _train(team, home)
    assert done.returncode == 0, done.stdout[-4000:]
    fetched = _agentps(team, home, "fetch", "-c", str(home / "run.yaml"))
    assert fetched.returncode == 0, fetched.stdout
    assert not list(home.rglob("*.jpg")), "a copy of the posts is on this machine"
    # Trainer prints its figures as Python writes a dict
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert {"ingest", "preprocess", "fine_tune", "register"} <= {line.get("step") for line in lines}
    assert len({line["run"] for line in lines if "run" in line}) == 1


@pytest.fixture(scope="session")
def session(team: Team, trained: Path) -> Path:
    """`trained`, after her whole session."""
    script = str(REPOSITORY / "infra/team/session.sh")
    environment = clean({"BIN": str(Path(sys.executable).parent)})
    done = run([script, str(team.folder / "users/alice.env"), str(trained / "run.yaml"), str(trained)], environment)
    (trained / "session.log").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    return trained


def test_a_user_trains_promotes_serves_scores_and_rolls_back(session: Path) -> None:
    first, second, again = (
        json.loads((session / f"{name}.json").read_text())["records"][0] for name in ("first", "second", "again")
    )
    assert (first["model_version"], second["model_version"], again["model_version"]) == ("1", "2", "1")
    assert first["score"] == again["score"] != second["score"]


@pytest.mark.parametrize("key", [None, "agentps_wrong"])
def test_the_service_scores_for_nobody_without_a_key(team: Team, session: Path, key: str | None) -> None:
    body = json.loads((session / "post.json").read_text())
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    assert _ask(f"{team.state.url('service')}/score", body, headers) == 401


def test_a_post_that_is_laid_into_the_folder_is_scored_by_the_stream_worker_with_the_champion(
    team: Team, trained: Path
) -> None:
    end = time.monotonic() + PATIENCE
    while status(team.folder)["servers"]["stream"] != "ready":
        assert time.monotonic() < end, status(team.folder)
        time.sleep(0.5)
    posts, image = team.folder / "home" / "posts", next((trained / "sample").rglob("*.jpg"))
    shutil.copy(image, posts / "laid.jpg")
    (posts / ".laid").write_text(json.dumps({"post_id": "laid", "title": "A walk", "images": ["laid.jpg"]}))
    (posts / ".laid").rename(posts / "laid.json")
    query = text("SELECT score FROM scoring_current WHERE post_id = 'laid'")
    with _engine(team.state.database("scores")).connect() as connection:
        while not (found := connection.execute(query).scalars().all()):
            connection.rollback()
            assert time.monotonic() < end, (team.folder / "logs" / "stream.log").read_text()[-2000:]
            time.sleep(0.5)
    assert 0 <= found[0] <= 1


def _prometheus(team: Team, path: str) -> Any:
    url = f"http://127.0.0.1:{team.state.ports['prometheus']}/api/v1/{path}"
    with urllib.request.urlopen(url, timeout=120) as answer:
        return json.load(answer)["data"]


def test_an_alert_fires_when_the_worker_is_silent_and_ends_when_it_goes_on(team: Team, trained: Path) -> None:
    """Of a stack that serves: service and worker are seen by Prometheus."""

    def await_(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (status(team.folder), _prometheus(team, "targets"))
            time.sleep(2)

    def fires() -> bool:
        found = _prometheus(team, "alerts")["alerts"]
        return ("StreamDown", "firing") in {(each["labels"]["alertname"], each["state"]) for each in found}

    def up() -> dict[str, str]:
        return {each["labels"]["job"]: each["health"] for each in _prometheus(team, "targets")["activeTargets"]}

    await_(lambda: up() == {"agentps-service": "up", "agentps-stream": "up"} and not fires())
    worker = status(team.folder)["pids"]["stream"]
    os.kill(worker, signal.SIGSTOP)
    try:
        await_(fires)
        assert up() == {"agentps-service": "up", "agentps-stream": "down"}
    finally:
        os.kill(worker, signal.SIGCONT)
    await_(lambda: not fires())


def _answers(team: Team) -> int:
    with _engine(team.state.database("ledger")).connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM annotation_answers")).scalar_one())


def test_what_was_deleted_comes_back_from_a_back_up_scores_the_same_and_pays_nothing_twice(
    team: Team, trained: Path, tmp_path: Path
) -> None:
    """The stack is another one afterwards."""
    (posts,) = (trained / "sample").glob("*/posts.jsonl")
    few = posts.with_name("few.jsonl")
    few.write_text("".join(posts.read_text().splitlines(keepends=True)[:20]))
    answers, before = _answers(team), _score(team, trained, str(few), tmp_path / "before.jsonl")
    assert answers > 0
    team.command("backup", str(tmp_path / "backup"))
    team.command("stop")
    assert team.call("restore", str(tmp_path / "backup")).returncode == 1  # a stack is there
    shutil.rmtree(team.folder)
    team.command("restore", str(tmp_path / "backup"))
    team.command("start")
    home = _home(tmp_path / "new")  # a machine on which nothing is cached
    after = _score(team, home, str(few), tmp_path / "after.jsonl")
    assert before.keys() == after.keys()
    assert len(before) == 20
    for post_id, record in before.items():
        assert record | {"scored_at": after[post_id]["scored_at"]} == after[post_id], "to the last bit"
    (home / "run.yaml").write_text(RUN + "enable_cache: false\n")
    done = _train(team, home)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "asked 0, reused" in done.stdout
    assert _answers(team) == answers


def test_after_a_rotation_no_password_of_before_opens_and_all_goes_on(team: Team) -> None:
    before = team.state
    _s3(team.variables("alice")).put_object(Bucket="posts", Key="of-before", Body=b"x")
    team.command("rotate")
    team.command("start")
    after = team.state
    assert {name for name in before.secrets if before.secrets[name] == after.secrets[name]} == {*KEPT, "service_key"}
    search = f"{after.url('mlflow')}{API}/registered-models/search"
    assert _ask(search, headers=_basic("admin", before.secrets["mlflow_admin"])) == 401
    assert _ask(search, headers=_basic("admin", after.secrets["mlflow_admin"])) == 200
    assert _mlflow(team, "alice", "/registered-models/search") == 200
    with pytest.raises(ClientError):
        _s3(before.s3("posts")).list_objects_v2(Bucket="posts")
    assert _s3(team.variables("alice")).get_object(Bucket="posts", Key="of-before")["Body"].read() == b"x"
    with pytest.raises(OperationalError):
        _engine(before.database("scores")).connect()
    _engine(team.variables("alice")["STORE_URL"]).connect().close()


def test_a_migration_leaves_what_is_up_to_date_as_it_is(team: Team) -> None:
    assert team.call("migrate").returncode == 1  # it runs
    team.command("stop")
    team.command("migrate")
    team.command("start")
    assert _mlflow(team, "alice", "/registered-models/search") == 200


def test_a_back_up_with_a_changed_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from infra.team.backup import restore
    from infra.team.state import TeamError

    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mlflow").write_bytes(b"dump")
    manifest = {"mlflow": sha256_of(tmp_path / "backup" / "mlflow"), "zenml": "0" * 64}
    (tmp_path / "backup" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TeamError, match="zenml"):
        restore(tmp_path / "backup", tmp_path / "team")
    (tmp_path / "backup" / "mlflow").write_bytes(b"dumq")
    with pytest.raises(TeamError, match="mlflow"):
        restore(tmp_path / "backup", tmp_path / "team")
    assert not (tmp_path / "team").exists()
