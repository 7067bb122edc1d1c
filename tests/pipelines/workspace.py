"""A copy of the repository with its own state, in which the literal command runs as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from mlflow import MlflowClient

from model.schema import IMAGES, TEXT, TITLE, VIDEO
from steps.paths import REPOSITORY
from tests.support.zenml import copy_zenml

ZENML = Path(sys.executable).with_name("zenml")
STEPS = ("ingest", "annotate", "validate", "preprocess", "fine_tune", "evaluate", "register", "promote")
#: What a run reads of the repository.
_COPIED = (
    *("agentps_training.py", "cli", "configs", "examples", "infra"),
    *("materializers", "model", "pipelines", "scoring", "steps"),
)
_SCORE = """
import sys, mlflow, pandas
posts = pandas.read_parquet("posts.parquet")
posts["images"] = posts["images"].map(list)
mlflow.pyfunc.load_model(sys.argv[1]).predict(posts).to_parquet("scores.parquet")
"""
_PATIENCE = 300.0  # seconds for one command, on a busy machine


@dataclass(frozen=True)
class Outcome:
    """What a command left: stdout and stderr as one text, without progress bars."""

    exit_code: int
    output: str
    seconds: float

    @property
    def cached(self) -> list[str]:
        return re.findall(r"^Using cached version of step `?(\w+)`?\.", self.output, re.MULTILINE)

    @property
    def finished(self) -> list[str]:
        return re.findall(r"^Step `?(\w+)`? has finished in", self.output, re.MULTILINE)


class Running:
    """A started command and the group of processes that it makes."""

    def __init__(self, command: list[str], root: Path, environment: Mapping[str, str], log: Path) -> None:
        self._started, self._log = time.monotonic(), log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=root, env=dict(environment), stdout=file, stderr=file, start_new_session=True
            )

    def wait(self) -> Outcome:
        try:
            exit_code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        lines = re.split(r"[\r\n]", self._log.read_text(encoding="utf-8", errors="replace"))
        output = "\n".join(line for line in lines if line.strip() and "it/s]" not in line)
        return Outcome(exit_code, output, time.monotonic() - self._started)

    def kill(self) -> None:
        """SIGKILL to every process of the group, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """SIGKILL as soon as `moment` is true; the command must not end before."""
        self.wait_for(moment)
        self.kill()

    def wait_for(self, moment: Callable[[], bool]) -> None:
        while not moment():
            assert self.process.poll() is None, f"it ended before it could be killed:\n{self.wait().output}"
            assert time.monotonic() - self._started < _PATIENCE, "the moment never came"
            time.sleep(0.005)


class Workspace:
    """The copy, `root`; its state, `home`; and what a run left there."""

    def __init__(self, root: Path, made_zenml: Path, empty_database: Path) -> None:
        self.root, self.home = root, root / ".agentps"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *_COPIED],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (REPOSITORY / name).is_file():  # a deleted file is listed until it is committed
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, root / name)
        self.home.mkdir()
        # MLflow puts the URIs that another test set into the environment: a run here must not follow them.
        foreign = ("OPENAI_", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_RUN_", "MLFLOW_EXPERIMENT_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {
            "AGENTPS_HOME": str(self.home),
            "ZENML_CONFIG_PATH": str(root / ".zenml"),
            "ZENML_LOGGING_COLORS_DISABLED": "true",
            "PYTHONPATH": str(root),  # before the repository that is installed in the environment
        }
        copy_zenml(made_zenml, root / ".zenml")
        shutil.copy(empty_database, self.home / "mlflow.db")

    def start(self, command: list[str], **environment: str) -> Running:
        log = self.root / f"output-{time.monotonic_ns()}.txt"
        return Running(command, self.root, {**self.environment, **environment}, log)

    def python(self, *arguments: str) -> Outcome:
        outcome = self.start([sys.executable, *arguments]).wait()
        assert outcome.exit_code == 0, outcome.output
        return outcome

    def config(self, name: str, content: Mapping[str, Any]) -> str:
        (self.root / name).write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
        return name

    @staticmethod
    def command(config: str, pipeline: str = "agentps_training") -> list[str]:
        return [str(ZENML), "pipeline", "run", pipeline, "-c", config]

    def train(self, config: str, **environment: str) -> Outcome:
        """Run the literal command and wait for its end."""
        return self.start(self.command(config), **environment).wait()

    def score(self, model_uri: str, posts: pd.DataFrame) -> pd.DataFrame:
        """The registered model's answers to title, text, images and video, from a process outside of the copy."""
        folder = self.root / "elsewhere"
        folder.mkdir(exist_ok=True)
        posts[[name for name in (TITLE, TEXT, IMAGES, VIDEO) if name in posts]].to_parquet(folder / "posts.parquet")
        environment = {k: v for k, v in self.environment.items() if k not in ("PYTHONPATH", "AGENTPS_HOME")}
        command = [sys.executable, "-c", _SCORE, model_uri]
        environment["MLFLOW_TRACKING_URI"] = self._mlflow_uri
        environment["AGENTPS_IMAGE_ROOT"] = "/"  # the posts may lie anywhere, and are our own
        outcome = Running(command, folder, environment, folder / "output.txt").wait()
        assert outcome.exit_code == 0, outcome.output
        return pd.read_parquet(folder / "scores.parquet")

    # --- what is on disk ----------------------------------------------------------------------

    @property
    def _mlflow_uri(self) -> str:
        return f"sqlite:///{self.home}/mlflow.db"

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self._mlflow_uri, registry_uri=self._mlflow_uri)

    def rows(self, database: str, table: str, where: str = "1") -> int:
        """Rows of a table of `annotations.db` or `mlflow.db`; 0 where it is not there yet."""
        path = self.home / database
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            try:
                return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    @property
    def answers(self) -> int:
        """Attempts in the annotation ledger."""
        return self.rows("annotations.db", "annotation_answers")

    def forget_answers(self) -> None:
        """For a test that counts them: the tests of a session share the workspace, and many of the drawn posts."""
        for path in self.home.glob("annotations.db*"):
            path.unlink()

    def last_metrics(self) -> dict[str, float]:
        """The metrics of the newest MLflow run."""
        experiment = self.mlflow.get_experiment_by_name("agentps_training")
        assert experiment is not None
        newest = self.mlflow.search_runs(
            [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1
        )
        return dict(newest[0].data.metrics)

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version of a registered model."""
        return {alias: str(v) for alias, v in self.mlflow.get_registered_model(model).aliases.items()}

    def versions(self, model: str) -> int:
        return self.rows("mlflow.db", "model_versions", f"name = '{model}'")

    def table(self, step: str, output: str) -> pd.DataFrame:
        """The newest artifact of a step's output."""
        found = (self.home / "artifacts" / step / output).glob("*/*/df.parquet*")
        return pd.read_parquet(max(found, key=lambda path: path.stat().st_mtime))

    def simulated_annotators(self) -> list[int]:
        """Process ids of the simulated annotator's servers that work for this copy."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = b"steps.annotate.simulated" in (process / "cmdline").read_bytes()
                if is_ours and (process / "cwd").resolve() == self.root.resolve():
                    found.append(int(process.name))
            except OSError:  # it ended meanwhile
                continue
        return found
