"""A batch: one record for each post, however often it is killed, and the same bytes by every engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks.batch_scoring import STUB, StubScore, settings_of
from model.backbone import load_tokenizer
from model.checkpoint import load as load_checkpoint
from model.data import Batches, Shards
from model.device import best_device
from model.errors import ConfigError, DataError, DiskError, ManifestError
from model.images import ImageLimits
from model.scorer import predict_rows
from model.settings import BackboneSettings
from model.task import Task
from scoring import batch
from scoring.batch import Counts, load, records_of, score_batch, told
from scoring.files import picture_reader
from scoring.record import Record
from scoring.score import Input, LocalScore, read_input
from steps.ingest.posts import read_manifest
from steps.paths import REPOSITORY
from steps.preprocess.shards import write_shards
from steps.register import registry
from steps.register.registry import RegisteredVersion
from steps.settings import load_settings
from tests.steps.register.test_registry import PREDICTIONS, report
from tests.support.disk import files_end_at
from tests.support.tiny import SEQUENCE, TASK, train_settings, write_checkpoint, write_images

NOW = datetime(2026, 3, 1, 23, tzinfo=UTC)
NAME = "agentps-small"


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    folder = tmp_path / "posts"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"A")
    return folder


def post(post_id: Any, **cells: Any) -> dict[str, Any]:
    return {"post_id": post_id, "title": "t", "images": ["a.png"], **cells}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """Each row as JSON, or as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(
    manifest: Path | str, output: Path, version: str = "1", now: datetime = NOW, make: Any = None, **settings: Any
) -> tuple[Path, Counts]:
    chosen = settings_of(posts=str(manifest), output=str(output), **{"shard": 3, **settings})
    return score_batch(STUB.model_copy(update={"version": version}), make or partial(StubScore, version), chosen, now)


def never() -> StubScore:
    raise AssertionError("nothing is left to score")


def ids(output: Path) -> list[str]:
    return pd.read_parquet(output)["post_id"].tolist()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_post_has_one_record_in_a_file_for_each_shard(posts: Path, tmp_path: Path) -> None:
    manifest = write(posts / "m.jsonl", [post(f"p{k}") for k in range(7)] + [post("bad", title="bad")])
    folder, counts = run(manifest, tmp_path / "out")
    assert folder == tmp_path / "out" / "day=2026-03-01"
    assert [len(pq.read_table(path, partitioning=None)) for path in sorted(folder.glob("shard-*"))] == [3, 3, 2]
    table = pd.read_parquet(tmp_path / "out")
    assert table["post_id"].tolist() == [*(f"p{k}" for k in range(7)), "bad"]
    assert set(table["scored_at"]) == {pd.Timestamp(NOW)}
    assert table["latency_ms"].isna().all()
    assert set(table["day"].astype(str)) == {"2026-03-01"}
    last = table.iloc[-1]
    assert (last["error"], pd.isna(last["score"]), last["decision_p80"]) == ("it is bad", True, None)
    flagged = int(table["decision_p80"].eq(True).sum())
    assert counts == Counts(scored=7, flagged={"p80": flagged}, errors=1, rejects=0)
    assert json.loads((folder / "_counts.json").read_text()) == counts.model_dump()
    assert told(STUB, folder, counts) == (
        f"stub version 1: 7 posts scored ({flagged} flagged at p80), 1 could not be scored, 0 rows rejected. "
        f"Records: {folder}"
    )
    assert not list(folder.glob("*.part"))


def test_every_format_a_folder_and_a_url_give_the_same_records(posts: Path, tmp_path: Path) -> None:
    rows = [post(f"p{k}", text=f'"{k}", 今天') for k in range(8)]
    write(posts / "m.jsonl", rows)
    frame = pd.DataFrame(rows)
    frame.to_parquet(posts / "m.parquet", row_group_size=3)
    frame.assign(images="a.png").to_csv(posts / "m.csv", index=False)
    (posts / "several").mkdir()
    shutil.copy(posts / "a.png", posts / "several")
    frame[:4].to_parquet(posts / "several" / "1.parquet")
    write(posts / "several" / "2.jsonl", rows[4:])
    for name in ("m.jsonl", "a.png"):
        with fsspec.open(f"memory://batch/{name}", "wb") as file:
            file.write((posts / name).read_bytes())
    tables = []
    sources = [posts / "m.jsonl", posts / "m.parquet", posts / "m.csv", posts / "several", "memory://batch/m.jsonl"]
    for number, source in enumerate(sources):
        run(source, tmp_path / str(number))
        tables.append(pd.read_parquet(tmp_path / str(number)))
        pd.testing.assert_frame_equal(tables[-1], tables[0])
    assert len(tables[0]) == 8
    assert tables[0]["error"].isna().all()


def test_rows_that_are_no_post_s_are_told_and_cost_no_other(posts: Path, tmp_path: Path) -> None:
    write(posts / "1.jsonl", [post("a"), '{"post_id": ', post(None), post("a"), post(7), post(" ")])
    write(posts / "2.jsonl", [post("b"), post("7"), post(True), "[1]"])
    folder, counts = run(posts, tmp_path / "out", shard=2)
    assert ids(tmp_path / "out") == ["a", "7", "b"]
    told_ = [json.loads(line) for line in (folder / "_rejects.jsonl").read_text().splitlines()]
    assert [(Path(row["manifest"]).name, row["row"], row["post_id"]) for row in told_] == [
        ("1.jsonl", 2, None), ("1.jsonl", 3, None), ("1.jsonl", 4, "a"), ("1.jsonl", 6, None),
        ("2.jsonl", 2, "7"), ("2.jsonl", 3, None), ("2.jsonl", 4, None),
    ]  # fmt: skip
    reasons = [row["reason"] for row in told_]
    assert reasons[0].startswith("not JSON")
    assert reasons[1] == "post_id: missing; a text that is not empty is expected"
    assert reasons[2] == "post_id: 'a' is already the post of row 1"
    assert reasons[4] == f"post_id: '7' is already the post of row 5 of {posts / '1.jsonl'}"
    assert (counts.scored, counts.rejects) == (3, 7)
    assert f"7 rows rejected (see {folder / '_rejects.jsonl'})" in told(STUB, folder, counts)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (["../secret.png"], "lies outside the manifest's folder"),
        (["{outside}"], "lies outside the manifest's folder"),
        (["link.png"], "lies outside the manifest's folder"),
        (["https://example.com/a.png"], "is a URL; only files in the manifest's folder are read"),
        (["file:///etc/passwd"], "is a URL; only files"),
        (["data:image/png;base64,AAAA"], "is a URL; only files"),
        ([7], "image 1: no path of a file"),
        (["a.png", "missing.png"], "image 2: no such file"),
        (["large.png"], "image 1: 1,000,001 bytes; at most 1,000,000 are read"),
        ([], "images: []; a list of one or more images is expected"),
        ("a.png", "images: 'a.png'; a list"),
        (["a\0.png"], "image 1: "),
        (["\ud800.png"], "image 1: "),
    ],
)
def test_a_picture_that_cannot_be_read_is_the_record_s_error(
    images: Any, error: str, posts: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (posts / "link.png").symlink_to(tmp_path / "secret.png")
    (posts / "large.png").write_bytes(b"x" * 1_000_001)
    if images == ["{outside}"]:
        images = [str(tmp_path / "secret.png")]
    _, counts = run(write(posts / "m.jsonl", [post("a", images=images), post("b")]), tmp_path / "out")
    assert (counts.scored, counts.errors) == (1, 1)
    table = pd.read_parquet(tmp_path / "out").set_index("post_id")
    assert error in table.loc["a", "error"]
    assert pd.isna(table.loc["a", "score"])
    assert pd.isna(table.loc["a", "decision_p80"])


# --- killed, and begun again --------------------------------------------------------------------------------


class Slow(StubScore):
    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        time.sleep(0.03)
        return super().__call__(inputs, now)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_killed_again_and_again_the_output_is_that_of_one_go(suffix: str, posts: Path, tmp_path: Path) -> None:
    rows = [post(f"p{k}") for k in range(60)]
    manifest = write(posts / "m.jsonl", [*rows, post("p0"), post(None)]).with_suffix(suffix)
    frame = pd.DataFrame([*rows, post("p0"), post(None)])
    if suffix == ".parquet":
        frame.to_parquet(manifest)
    if suffix == ".csv":
        frame.assign(images='["a.png"]').to_csv(manifest, index=False)
    whole, output = run(manifest, tmp_path / "whole")[0], tmp_path / "out"
    for k in range(4):
        process = os.fork()  # a new interpreter would import for longer than it scores
        if not process:
            run(manifest, output, make=Slow, now=NOW + timedelta(days=k))
            os._exit(0)
        deadline = time.monotonic() + 120
        while len(list(output.glob("day=*/shard-*.parquet"))) < 4 * k + 1:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        for path in output.glob("day=*/*"):
            if path.name.startswith("shard-0") and path.suffix == ".parquet":
                assert path.read_bytes() == (whole / path.name).read_bytes(), "whole, whenever it is there"
    folder, counts = run(manifest, output, now=NOW + timedelta(days=9))
    assert sorted(ids(output)) == sorted(f"p{k}" for k in range(60))
    assert (counts.scored, counts.rejects) == (60, 2)
    assert files(folder) == files(whole)


def test_what_is_there_is_not_scored_again(posts: Path, tmp_path: Path) -> None:
    manifest = write(posts / "m.jsonl", [post(f"p{k}") for k in range(7)])
    folder, counts = run(manifest, tmp_path / "out")
    before = files(tmp_path / "out")
    assert run(manifest, tmp_path / "out", make=never, now=NOW + timedelta(days=3)) == (folder, counts)
    assert files(tmp_path / "out") == before
    (folder / "_counts.json").unlink()
    (folder / "shard-00001.parquet").unlink()
    (folder / "shard-00001.parquet.17.part").write_bytes(b"half")
    assert run(manifest, tmp_path / "out", now=NOW + timedelta(days=3), shard=100) == (folder, counts)
    assert files(tmp_path / "out") == before, "at the job's time, and in its shards"


def test_an_unfinished_job_takes_no_other_version_and_no_other_posts(posts: Path, tmp_path: Path) -> None:
    manifest, output = write(posts / "m.jsonl", [post(f"p{k}") for k in range(7)]), tmp_path / "out"
    folder, _ = run(manifest, output)
    (folder / "_counts.json").unlink()
    before = files(output)
    for day in (0, 3):
        later = NOW + timedelta(days=day)
        message = r'unfinished job by version 1, not by version 2: set scoring\.version: "1" to go on with it'
        with pytest.raises(ConfigError, match=message):
            run(manifest, output, "2", now=later)
        write(posts / "other.jsonl", [post("x")])
        with pytest.raises(ConfigError, match=r"unfinished job of .*m\.jsonl as it was then, not of .*other\.jsonl"):
            run(posts / "other.jsonl", output, now=later)
    original = manifest.read_bytes()
    write(manifest, [post(f"p{k}") for k in range(8)])
    with pytest.raises(ConfigError, match=r"m\.jsonl as it was then, not of .*m\.jsonl now"):
        run(manifest, output)
    manifest.write_bytes(original)
    assert files(output) == before
    assert run(manifest, output)[0] == folder


def test_of_finished_jobs_each_day_has_one(posts: Path, tmp_path: Path) -> None:
    """The posts of the next day, or the same by the next version, go beside; those of the same day elsewhere."""
    one, two = write(posts / "1.jsonl", [post("a")]), write(posts / "2.jsonl", [post("b")])
    run(one, tmp_path / "out")
    for manifest, version in ((two, "1"), (one, "2")):
        with pytest.raises(ConfigError, match=r"day=2026-03-01 holds today's records .*: name another folder"):
            run(manifest, tmp_path / "out", version)
    run(two, tmp_path / "out", now=NOW + timedelta(hours=1))
    run(one, tmp_path / "out", "2", now=NOW + timedelta(days=1, hours=1))
    table = pd.read_parquet(tmp_path / "out")
    assert list(zip(table["post_id"], table["model_version"], table["day"].astype(str), strict=True)) == [
        ("a", "1", "2026-03-01"), ("b", "1", "2026-03-02"), ("a", "2", "2026-03-03"),
    ]  # fmt: skip


def test_somebody_else_s_files_stay(posts: Path, tmp_path: Path) -> None:
    manifest, day = write(posts / "m.jsonl", [post("a")]), tmp_path / "out" / "day=2026-03-01"
    day.mkdir(parents=True)
    (day / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="holds files of somebody else: name another folder"):
        run(manifest, tmp_path / "out")
    assert files(tmp_path / "out").keys() == {"_lock", "day=2026-03-01/mine.parquet"}


def test_a_manifest_that_changes_meanwhile_is_noticed(
    posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(posts / "m.jsonl", [post(f"p{k}") for k in range(9)])
    folder, _ = run(manifest, tmp_path / "out")
    (folder / "_counts.json").unlink()
    (folder / "shard-00001.parquet").unlink()
    mark = json.loads((folder / "_job.json").read_text())["fingerprint"]
    monkeypatch.setattr(batch, "fingerprint", lambda *_: mark)  # it is changed after that look
    write(manifest, [post(f"q{k}") for k in range(9)])
    with pytest.raises(ManifestError, match="rows 4 and following are others than when the job began"):
        run(manifest, tmp_path / "out")
    assert not (folder / "shard-00001.parquet").exists()


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (
            [post(None), {}, "x"],
            ManifestError,
            "3 rows, none with a usable post_id, the first: row 1: post_id: missing",
        ),
        ([], ManifestError, "0 rows, none with a usable post_id. Write one row"),
        (
            [post("a", title="bad"), post("b", images=[])],
            DataError,
            "none of 2 posts could be scored, the first: a: it",
        ),
    ],
)
def test_a_job_without_one_score_is_no_success(
    rows: list[Any], kind: type[Exception], message: str, posts: Path, tmp_path: Path
) -> None:
    manifest = write(posts / "m.jsonl", rows)
    for _ in range(2):
        with pytest.raises(kind, match=message):
            run(manifest, tmp_path / "out")
    assert not list(tmp_path.glob("out/day=*/_counts.json"))


def test_a_full_disk_leaves_no_half_a_file_and_the_next_run_goes_on(posts: Path, tmp_path: Path) -> None:
    """While the shards are made, and while the first one is scored."""
    manifest = write(posts / "m.jsonl", [post(f"p{k}") for k in range(7)])
    whole = run(manifest, tmp_path / "whole")[0]
    with files_end_at(3_000), pytest.raises(DiskError, match=r"_ids\.part: cannot be written: the disk is full"):
        run(manifest, tmp_path / "out")
    assert {path.name for path in tmp_path.glob("out/day=*/*")} == {"_job.json"}
    stack = ExitStack()

    def make() -> StubScore:
        stack.enter_context(files_end_at(3_000))
        return StubScore()

    with stack, pytest.raises(DiskError, match=r"shard-00000\..*: cannot be written: File too large"):
        run(manifest, tmp_path / "out", make=make)
    assert {path.name for path in tmp_path.glob("out/day=*/*")} == {"_job.json", "_shards.jsonl"}
    assert files(run(manifest, tmp_path / "out")[0]) == files(whole)


def test_of_the_pictures_few_are_in_memory(posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (posts / "b.png").write_bytes(b"x" * 400)
    seen: list[int] = []

    class Seeing(StubScore):
        def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
            seen.append(len(inputs))
            return super().__call__(inputs, now)

    large = [post(f"p{k}", images=["b.png"] * 2) for k in range(5)]
    manifest = write(posts / "m.jsonl", [*large, *(post(f"q{k}") for k in range(9))])
    monkeypatch.setattr(batch, "_CHUNK", 4)
    monkeypatch.setattr(batch, "_CHUNK_BYTES", 1_500)
    run(manifest, tmp_path / "out", make=Seeing, shard=100)
    assert seen == [2, 2, 4, 4, 2]
    assert len(ids(tmp_path / "out")) == 14


def test_pictures_of_an_object_store_are_read_side_by_side_and_stay_in_order() -> None:
    """Each of four readers waits for the three others: one alone would wait for ever."""
    together = threading.Barrier(4, timeout=60)

    def read(source: Any) -> bytes:
        together.wait()
        return str(source).encode()

    rows = [post(f"p{k}", images=[f"{k}.png"]) for k in range(8)]
    score = StubScore()
    found = list(records_of(rows, score, read, NOW, readers=4))
    expected = [Input(f"p{k}", "t", "", (f"{k}.png".encode(),)).sha256 for k in range(8)]
    assert [record.post_id for record in found] == [f"p{k}" for k in range(8)]
    assert [record.input_sha256 for record in found] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"posts": None}, r"scoring\.posts: name a manifest"),
        ({"output": ""}, r"scoring\.output: name a folder"),
        ({"output": "s3://bucket/out"}, r"scoring\.output s3://bucket/out: a folder of this machine"),
    ],
)
def test_posts_and_output_must_be_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(**{"posts": "m.jsonl", "output": "out", **settings}).named()


def test_an_output_that_is_a_file_is_one_message(posts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DiskError, match="out: cannot be written: File exists"):
        run(write(posts / "m.jsonl", [post("a")]), tmp_path / "out")


# --- the real scorer, and Ray -------------------------------------------------------------------------------


@pytest.fixture
def real(tracking: Path, agentps_home: Path, tiny_backbone: BackboneSettings) -> tuple[RegisteredVersion, Path]:
    """A registered version, and a manifest of ten posts."""
    paths = write_images(tracking, 5)
    rows = [
        {"post_id": f"p{k}", "title": "a walk", "text": f"#{k}", "images": [p.name for p in paths[: 1 + k % 5]]}
        for k in range(10)
    ]
    manifest = write(tracking / "m.jsonl", rows)
    checkpoint = write_checkpoint(tracking / "checkpoint", tiny_backbone, train_settings(variant="agentps_answers"))
    example = pd.DataFrame({"title": ["a"], "text": ["b"], "images": [[str(paths[0])]]})
    return registry.register(checkpoint, report(), PREDICTIONS, TASK, example, name=NAME, tags={})[0], manifest


def of_evaluation(
    version: RegisteredVersion, manifest: Path, task: Task, backbone: BackboneSettings, scratch: Path
) -> list[float]:
    """The logits by the way of training: ingest, shards, batches of shards."""
    options = load_settings({}).ingest
    limits = ImageLimits(max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels)
    loaded = load_checkpoint(registry.fetch(version), best_device())
    table = read_manifest(manifest, task, options).posts
    write_shards(scratch / "shards", table, task, SEQUENCE, load_tokenizer(backbone), limits)
    shards = Shards(scratch / "shards")
    batches = Batches(shards, loaded.prompt, task)
    found = predict_rows(loaded.model, batches, pd.RangeIndex(len(table)).to_numpy(), 4)
    assert shards.posts["post_id"].tolist() == table["post_id"].tolist()
    return found.final_N.tolist()


_ON_RAY = """
import sys
from datetime import datetime
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from benchmarks.batch_scoring import settings_of
from scoring.batch import load, score_batch
from steps.register import registry

uri, name, version, posts, output, now = sys.argv[1:]
assert "ray" not in sys.modules
import mlflow
mlflow.set_tracking_uri(uri)
settings = settings_of(posts=posts, output=output, engine="ray", shard=4, workers=2)
found = registry.get(name, version)
score_batch(found, partial(load, found, uri, 1), settings, datetime.fromisoformat(now))
"""


def test_ray_and_local_write_the_same_bytes_the_scores_of_local_score_and_of_evaluation(
    real: tuple[RegisteredVersion, Path], tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    version, manifest = real
    uri = mlflow.get_tracking_uri()
    chosen = settings_of(posts=str(manifest), output=str(tmp_path / "local"), shard=4)
    folder, counts = score_batch(version, partial(load, version, uri, 1), chosen, NOW)
    assert (counts.scored, counts.errors) == (10, 0)
    if find_spec("ray"):
        arguments = [uri, version.name, version.version, str(manifest), str(tmp_path / "ray"), NOW.isoformat()]
        process = [sys.executable, "-c", _ON_RAY, *arguments]
        found = subprocess.run(process, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        assert files(tmp_path / "ray" / folder.name) == files(folder)
    table = pd.read_parquet(folder)
    score = LocalScore.of(version)
    read = picture_reader(str(manifest.parent), score.limits)
    inputs = [read_input(json.loads(line), read, score.post_limits) for line in manifest.read_text().splitlines()]
    assert table["score"].tolist() == pytest.approx([record.score for record in score(inputs, NOW)], abs=1e-12)
    assert table["input_sha256"].tolist() == [found.sha256 for found in inputs]
    expected = of_evaluation(version, manifest, TASK, tiny_backbone, tmp_path)
    assert table["logit"].tolist() == pytest.approx(expected, abs=1e-6)
