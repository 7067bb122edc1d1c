"""What is scheduled, how far it has come, and where the home keeps both."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, ValidationError

from infra.schedule.times import check_cron
from model.errors import ScheduleError
from model.files import replacing
from model.strict import Strict
from steps.locks import locked
from steps.settings import NotifySettings


class Launch(Strict):
    """What is run, and who is told of a failure."""

    #: As `zenml pipeline run` takes it.
    pipeline: str
    #: Absolute; None: configs/default.yaml.
    config: str | None
    #: As it was when the schedule was made: for a config that later cannot be read.
    notify: NotifySettings


class Job(Launch):
    """What is run, and when."""

    #: Five fields, read in the local time of the machine or of the orchestrator.
    cron: Annotated[str, AfterValidator(check_cron)]


class Progress(Strict):
    """What became of the schedule's times so far."""

    #: Every time up to this one has been run, or left out because a run was still going.
    covered: AwareDatetime
    #: The log of the run that has begun and not ended; None: none.
    running: str | None = None


class Files:
    """What a schedule keeps under the home."""

    def __init__(self, home_dir: Path) -> None:
        self.folder = home_dir / "schedule"
        self.job = self.folder / "job.json"
        self.progress = self.folder / "state.json"
        self.lock = self.folder / "lock"
        self.logs = self.folder / "logs"
        #: NAME=value lines for the run: cron and systemd hand on none of the variables of a shell.
        self.environment = home_dir / "schedule.env"

    def read_job(self) -> Job | None:
        """None: there is no schedule.

        Raises:
            ScheduleError: the file is not one that was written here.
        """
        try:
            return Job.model_validate_json(self.job.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            fault = error.strerror if isinstance(error, OSError) else f"{error.error_count()} faults"
            raise ScheduleError(
                f"{self.job}: not a schedule of this version ({fault}): run `agentps schedule --cron …` again"
            ) from error

    def read_progress(self) -> Progress | None:
        """None: there is none, or none that can be read."""
        try:
            return Progress.model_validate_json(self.progress.read_bytes())
        except (OSError, ValidationError):
            return None

    @contextmanager
    def writing(self, path: Path, value: Job | Progress) -> Iterator[None]:
        """The value takes the place of `path` when the block ends well; that there is room for it is known before.

        Only the user can read it: a job may hold the secret of a webhook.
        """
        with replacing(path) as part:
            part.touch(mode=0o600)
            part.write_text(value.model_dump_json(indent=2) + "\n", encoding="utf-8")
            yield

    def write(self, path: Path, value: Job | Progress) -> None:
        with self.writing(path, value):
            pass

    def warning(self) -> str | None:
        """That others can read the variables of the runs, which may be keys; None: they cannot."""
        if not self.environment.exists() or not self.environment.stat().st_mode & 0o077:
            return None
        command = shlex.join(["chmod", "600", str(self.environment)])
        return f"warning: other users of this machine may read the keys in {self.environment}: run `{command}`"

    def update_progress(self, **changes: Any) -> None:
        """Change some fields. One process at a time: what a run and one that finds it say is both kept."""
        with locked(self.folder / "state.lock"):
            progress = self.read_progress() or Progress(covered=changes.get("covered", datetime.now(UTC)))
            self.write(self.progress, progress.model_copy(update=changes))
