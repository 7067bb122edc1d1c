"""A real `mlflow server` behind a proxy that asks for credentials, fails, is slow, or loses answers."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from zenml.client import Client

from model.errors import RegistryError
from model.settings import BackboneSettings
from steps import edge
from steps.promote.gate import Decision
from steps.register import cache, history, registry
from steps.register.mirror import shown
from steps.register.reach import NotAllowedError
from tests.steps.register.test_registry import PREDICTIONS, report
from tests.support.mlflow_server import mlflow_server
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images
from tests.support.weather import Request, Trouble, Weather, weather

#: How often MLflow's client asks again by itself; and never.
PATIENT, AT_ONCE = "3", "0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def sky(folder: Path, empty_database: Path) -> Iterator[Weather]:
    with mlflow_server(folder, empty_database) as url, weather(url) as found:
        yield found


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, url)
    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)


@pytest.fixture
def way(sky: Weather, agentps_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """Tracking and registry are behind the proxy, which lets all through so far."""
    before = mlflow.get_tracking_uri()
    sky.clear()
    for name, value in (("MAX_RETRIES", PATIENT), ("BACKOFF_FACTOR", "0"), ("BACKOFF_JITTER", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    use(monkeypatch, sky.url)
    yield sky
    mlflow.set_tracking_uri(before)
    mlflow.set_registry_uri("")


def version_of(name: str, number: int) -> registry.RegisteredVersion:
    """A version without files."""
    registry.create_model(name)
    if len(registry.versions_of(name)) < number:
        MlflowClient().create_model_version(name, source="test:/none")
    return registry.get(name, str(number))


def promote(name: str, number: int) -> None:
    version = registry.get(name, str(number))
    history.challenge(version)
    history.settle(version, lambda _: Decision(verdict="promoted", reason="better"))
    history.publish(name, f"{name}-production")


def aliases(name: str) -> dict[str, str]:
    return {alias: str(v) for alias, v in MlflowClient().get_registered_model(name).aliases.items()}


def is_whole(name: str) -> None:
    """The state of two undisturbed promotions."""
    state, target = history.sync(name), f"{name}-production"
    assert aliases(name) == dict(state.aliases) == {"champion": "2", "previous": "1", "challenger": "2"}
    assert [entry.move.kind for entry in state.entries] == ["registered", "promoted"] * 2
    assert all(entry.done and entry.counts for entry in state.entries)
    assert registry.tags_of(registry.get(name, "2"))[history.VERDICT] == "promoted"
    assert [copy.source for copy in registry.versions_of(target)] == [f"models:/{name}/1", f"models:/{name}/2"]
    assert aliases(target) == {"champion": "2", "previous": "1"}


@pytest.fixture
def prepared(way: Weather, request: pytest.FixtureRequest) -> str:
    """A model whose first version is champion, and has a copy; the second one is there."""
    name = f"model-{len(MlflowClient().search_registered_models())}"
    version_of(name, 1)
    promote(name, 1)
    version_of(name, 2)
    way.seen.clear()
    return name


def test_a_promotion_whose_every_write_is_answered_into_the_void_once_is_made_once(way: Weather, prepared: str) -> None:
    way.trouble = way.each_write_once("lose")
    promote(prepared, 2)
    writes = [request for request in way.seen if request.is_write]
    assert len({*writes}) >= 14, "two records, three aliases, tags and marks; the copy with its tag and two aliases"
    way.clear()
    is_whole(prepared)


def test_a_promotion_that_each_lost_answer_ends_goes_on_where_it_stopped(
    way: Weather, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", AT_ONCE)
    way.trouble = way.each_write_once("lose")
    said: list[str] = []
    while True:
        try:
            promote(prepared, 2)
            break
        except RegistryError as error:
            said.append(str(error))
    assert len(said) >= 11
    assert all("run the same command again" in line for line in said)
    way.clear()
    is_whole(prepared)


Register = Callable[[str], tuple[registry.RegisteredVersion, bool]]


@pytest.fixture
def register(tmp_path: Path, tiny_backbone: BackboneSettings) -> Register:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings(variant="agentps_answers"))
    example = pd.DataFrame({"title": ["a"], "text": [""], "images": [[str(p) for p in write_images(tmp_path, 1)]]})

    def call(name: str) -> tuple[registry.RegisteredVersion, bool]:
        known = mlflow.get_experiment_by_name("tests")
        # not by `set_experiment`: later tests of this process, on other databases, would look for it
        with mlflow.start_run(experiment_id=known.experiment_id if known else mlflow.create_experiment("tests")):
            return registry.register(checkpoint, report(), PREDICTIONS, TASK, example, name=name, tags={})

    return call


def at_version(trouble: Trouble) -> Callable[[Request], Trouble]:
    """Once, at the request that creates the version."""
    left = [trouble]
    return lambda request: left.pop() if left and request.path.endswith("/model-versions/create") else None


def test_a_version_whose_creation_was_answered_into_the_void_is_there_once(
    way: Weather, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    way.trouble = at_version("lose")
    version, is_new = register("patient")
    assert (version.version, is_new) == ("1", True)
    assert [v.version for v in registry.versions_of("patient")] == ["1"]

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", AT_ONCE)
    way.trouble = at_version("lose")
    with pytest.raises(RegistryError, match="run the same command again"):
        register("at-once")
    assert register("at-once") == (registry.get("at-once", "1"), False)

    way.trouble = lambda request: 503 if request.method == "PUT" and request.path.endswith("report.json") else None
    with pytest.raises(RegistryError, match=r"the server failed \(503\): run the same command again"):
        register("upload")
    assert not MlflowClient().search_registered_models("name = 'upload'"), "the version comes last"
    way.clear()
    assert register("upload")[1]


def test_an_artifact_store_that_gives_back_other_bytes_is_told_before_there_is_a_version(
    way: Weather, register: Register, folder: Path
) -> None:
    def damage(request: Request) -> Trouble:
        if request.method == "GET" and request.path.endswith("trained.safetensors"):
            newest = max(folder.rglob("trained.safetensors"), key=lambda found: found.stat().st_mtime_ns)
            newest.write_bytes(newest.read_bytes()[:-1] + b"!")
        return None

    way.trouble = damage
    with pytest.raises(RegistryError, match=r"gives back other bytes than it got: .*trained\.safetensors"):
        register("damaged")
    assert not MlflowClient().search_registered_models("name = 'damaged'")


def test_a_server_that_asks_for_a_password_gets_it_for_versions_and_for_files(
    way: Weather, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    way.login = ("team", "a-secret-word")
    with pytest.raises(RegistryError, match=rf"^registry http://{way.host}: the server does not know you \(401\)"):
        history.sync("secured")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-secret-word")
    version, _ = register("secured")
    history.challenge(version)
    history.settle(version, lambda _: Decision(verdict="promoted", reason="first"))
    assert (registry.fetch(version, TASK) / "checkpoint.json").is_file()
    assert registry.report_of(version) == report()
    assert aliases("secured") == {"champion": "1", "challenger": "1"}
    assert history.publish("secured", "production") == "1"
    copy = registry.get("production", "1")
    assert registry.folder_of(copy) == registry.folder_of(version), "the same files, by their content"


def test_the_remedy_for_a_refused_login_is_to_correct_what_is_set(
    way: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    way.login = ("team", "a-secret-word")
    for name, value in (("USERNAME", "team"), ("PASSWORD", "another-word")):
        with pytest.raises(RegistryError, match=r"\(401\): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            history.sync("any")
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with pytest.raises(RegistryError, match=r"\(401\): correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        history.sync("any")


def only_reads(request: Request) -> Trouble:
    return 403 if request.is_write else None


def test_who_may_only_read_sees_a_settled_state_without_a_write(way: Weather, prepared: str, own_zenml: Client) -> None:
    way.trouble = only_reads
    assert dict(shown(prepared, f"{prepared}-production").aliases) == {"champion": "1", "challenger": "1"}
    assert [request for request in way.seen if request.is_write] == []


def test_who_may_only_read_sees_what_an_unfinished_or_a_foreign_move_comes_to(
    way: Weather, prepared: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, own_zenml: Client
) -> None:
    way.trouble = lambda request: 403 if request.path.endswith("registered-models/alias") else None
    second = registry.get(prepared, "2")
    with pytest.raises(NotAllowedError, match=r"allow this \(403\): registered-models/alias: ask for the right"):
        history.settle(second, lambda _: Decision(verdict="promoted", reason="better"))
    way.trouble = only_reads
    assert history.champion_of(prepared).version == "2", "decided, and not carried out"
    assert dict(shown(prepared, "elsewhere").aliases) == {"champion": "2", "previous": "1", "challenger": "1"}
    assert "does not allow this (403)" in caplog.text
    assert aliases(prepared) == {"champion": "1", "challenger": "1"}, "nothing was written"

    way.clear()
    MlflowClient().set_registered_model_alias(prepared, "champion", "2")
    MlflowClient().set_registered_model_alias(prepared, "challenger", "2")  # by hand
    way.trouble = only_reads
    seen = history.foreseen(prepared).aliases
    way.clear()
    assert dict(seen) == dict(history.sync(prepared).aliases) == {"champion": "2", "previous": "1", "challenger": "2"}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (401, r"the server does not know you \(401\): set MLFLOW_TRACKING_USERNAME"),
        (403, r"the server does not allow this \(403\)"),
        (404, "the answer 404 is not MLflow's: check MLFLOW_TRACKING_URI"),
        (302, "the answer 302 is not MLflow's"),
        (429, r"the server failed \(429\): run the same command again"),
        (500, r"the server failed \(500\): run the same command again"),
        (502, r"the server failed \(502\)"),
        (503, r"the server failed \(503\)"),
        ("cut", r"no connection \(RemoteDisconnected\): is the server up\? Then run the same command again"),
        ("slow", "no answer in time: run the same command again"),
        (200, "the answer is not MLflow's"),
    ],
)
def test_whatever_the_server_says_one_line_names_it_without_credentials(
    way: Weather, trouble: Trouble, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if trouble == "slow" else "60")
    use(monkeypatch, f"http://team:a-secret-word@{way.host}")
    way.trouble = lambda request: trouble
    version = registry.RegisteredVersion(name="any", version="1", run_id=None, source=None)
    for call in (lambda: history.sync("any"), lambda: registry.report_of(version), lambda: registry.get("any", "1")):
        with pytest.raises(RegistryError, match=message) as caught:
            call()
        assert way.host in str(caught.value)
        assert "secret-word" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_mlflow_without_a_server_is_one_line_outside_of_the_registry_too(
    way: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", AT_ONCE)
    way.trouble = lambda request: "cut"
    with pytest.raises(MlflowException) as caught:
        mlflow.create_experiment("any")
    assert (edge.told(caught.value) or "").startswith(f"MLflow {way.url}: no connection (RemoteDisconnected)")
    assert edge.told(MlflowException("a fault of the code")) is None, "that one keeps its traceback"


# --- what was fetched


def test_a_version_is_downloaded_once_held_to_its_hashes_on_each_use_and_leaves_nothing_else(
    way: Weather, register: Register, agentps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    version, _ = register("cached")
    assert list(scratch.iterdir()) == []

    def downloads() -> int:
        return sum(r.path.endswith("trained.safetensors") for r in way.seen if r.method == "GET")

    way.seen.clear()
    directory = registry.fetch(version)
    assert downloads() == 0, "what came back when it was registered is kept"
    assert directory.is_relative_to(agentps_home / "versions")
    registry.report_of(version)
    assert registry.load(version).metadata.run_id == version.run_id
    assert list(scratch.iterdir()) == []

    weights = directory / "trained.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    (directory / "left.part").write_text("")
    assert registry.fetch(version) == directory
    assert weights.read_bytes() == content, "a damaged one is downloaded again"
    assert not (directory / "left.part").exists()
    assert downloads() == 1
    assert registry.fetch(version) == directory
    assert downloads() == 1, "having been loaded added no file"

    (agentps_home / "versions" / "abc.7.part").mkdir()
    way.trouble = lambda request: "cut" if request.path.endswith("trained.safetensors") else None
    weights.unlink()
    cannot = rf"^registry {way.url}: models:/cached/1 cannot be read: "
    with pytest.raises(RegistryError, match=cannot + "no connection"):
        registry.fetch(version)
    way.trouble = lambda request: 502 if request.path.endswith("trained.safetensors") else None
    with pytest.raises(RegistryError, match=cannot + r"the server failed \(502\)"):
        registry.fetch(version)
    assert [path.name for path in (agentps_home / "versions").iterdir() if path.suffix == ".part"] == []
    way.clear()
    assert registry.fetch(version) == directory


def test_of_the_versions_that_were_fetched_those_used_last_stay(
    agentps_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def use_(key: str, size: int = 10) -> None:
        def fill(part: Path) -> None:
            made.append(key)
            part.mkdir()
            (part / "file").write_bytes(bytes(size))

        assert (cache.kept(key, lambda entry: True, fill) / "file").is_file()

    def there() -> set[str]:
        return {path.name for path in (agentps_home / "versions").iterdir() if path.is_dir()}

    for key in ("a", "b", "c", "d", "a", "e"):
        use_(key)
    assert (there(), made) == ({"a", "c", "d", "e"}, ["a", "b", "c", "d", "e"])
    monkeypatch.setattr(cache, "MAX_BYTES", 35)
    use_("f")
    assert there() == {"a", "e", "f"}
    use_("g", size=1000)
    assert there() == {"f", "g"}, "the two that were used last stay, however large"


def test_whatever_lies_among_the_versions_that_are_kept_a_fetch_goes_on(agentps_home: Path, tmp_path: Path) -> None:
    root = agentps_home / "versions"
    root.mkdir(parents=True)
    (root / "order.7.part").write_text("of a process that was killed while it wrote the order")
    (root / "order").write_bytes(b"\xff\xfe")
    (tmp_path / "elsewhere").mkdir()
    (root / "a-link").symlink_to(tmp_path / "elsewhere")
    for key in "abcde":
        assert cache.kept(key, lambda entry: True, Path.mkdir) == root / key
    assert sorted(path.name for path in root.iterdir()) == ["b", "c", "d", "e", "order"]
    assert (tmp_path / "elsewhere").is_dir()


def test_what_a_killed_process_was_fetching_is_fetched_anew_and_several_at_once_fetch_it_once(
    agentps_home: Path,
) -> None:
    def fill(part: Path, *, whole: bool = True) -> None:
        part.mkdir()
        with (agentps_home / "made").open("a") as file:
            file.write("x")
        (part / "half").write_text("")
        if not whole:
            os.kill(os.getpid(), signal.SIGKILL)
        (part / "whole").write_text("")

    def in_children(count: int, *, whole: bool) -> list[int]:
        children = []
        for _ in range(count):
            if (child := os.fork()) == 0:
                try:
                    entry = cache.kept("key", lambda entry: True, lambda part: fill(part, whole=whole))
                    os._exit(0 if (entry / "whole").exists() else 1)
                finally:
                    os._exit(2)
            children.append(child)
        return [os.waitpid(child, 0)[1] for child in children]

    assert in_children(1, whole=False) == [signal.SIGKILL]
    assert [path.suffix for path in (agentps_home / "versions").iterdir()] == [".part"]
    assert in_children(4, whole=True) == [0, 0, 0, 0]
    assert (agentps_home / "made").read_text() == "xx", "by the one that was killed, and by one of the four"
    assert sorted(path.name for path in (agentps_home / "versions").iterdir()) == ["key", "order"]
