"""The schedule with real files, locks and processes.

Stand-ins, all of them executables in a folder of the test: `crontab` (keeps one file: the user's own is never touched,
also where there is one), `systemctl` (writes down its arguments), and `zenml` for the runner, since what it starts is
not its concern.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from croniter import croniter
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ExecutionMode

from infra import schedule
from infra.failed_run import find
from infra.schedule import (
    Files,
    Job,
    check_cron,
    crontab_lines,
    install,
    installed_in,
    last_due,
    name_of,
    on_calendar,
    remove,
    run_due,
    send,
    units,
)
from model.errors import AgentPSError, ConfigError, ScheduleError
from pipelines.config import load_notify
from steps.paths import REPOSITORY
from steps.settings import NotifySettings

NOBODY = NotifySettings(webhook=None, command=None)
OTHERS = "# mine\nMAILTO=me@example.org\n5 4 * * * /usr/bin/true % text\n"


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute).astimezone()


def job(cron: str = "0 3 * * *", config: Path | None = None, notify: NotifySettings = NOBODY) -> Job:
    return Job(cron=cron, pipeline="agentps_training", config=str(config) if config else None, notify=notify)


class Machine:
    """The executables that the schedule finds, the user's folder and the clone's home."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.user, self.home = folder / "bin", folder / "user", folder / "100% my $home" / ".agentps"
        for path in (self.bin, self.user, self.home):
            path.mkdir(parents=True)
        self.crontab, self.calls, self.ran = folder / "crontab", folder / "systemctl.calls", folder / "ran"

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(0o755)

    def with_cron(self) -> None:
        self.script(
            "crontab",
            f'file="{self.crontab}"\n'
            '[ "$1" = -l ] && { [ -e "$file" ] || { echo "no crontab for me" >&2; exit 1; }; cat "$file"; exit; }\n'
            '[ "$1" = - ] && exec cat > "$file"\n'
            "exit 2",
        )

    def with_systemd(self, reachable: bool = True) -> None:
        self.script("systemctl", f'echo "$*" >> "{self.calls}"\nexit {0 if reachable else 1}')

    def zenml(self, body: str) -> None:
        self.script("zenml", f'echo "$PWD: $*" >> "{self.ran}"\n{body}')

    @property
    def runs(self) -> int:
        return len(self.ran.read_text().splitlines()) if self.ran.exists() else 0

    @property
    def logs(self) -> list[str]:
        return [path.read_text() for path in sorted(Files(self.home).logs.glob("*.log"))]

    def unit(self, kind: str) -> Path:
        return self.user / ".config" / "systemd" / "user" / f"{name_of(self.home)}.{kind}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(machine.bin))  # no scheduler of the machine that tests
    monkeypatch.setenv("HOME", str(machine.user))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(schedule, "BIN", machine.bin)
    machine.script("python", "exit 1")  # ZenML knows nothing
    return machine


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        *("", "@daily", "0 3 * *", "0 3 * * * *", "0 3 * * *; rm", "0 3 * * *\n0 4 * * *"),
        *("61 * * * *", "0 3 * * xyz", "0 3 L * *", "0 3 * * fri#2", "R 3 * * *", "0 0 30 2 *"),
    ],
)
def test_what_cron_would_not_understand_is_one_clear_error(expression: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_cron(expression)
    assert str(error.value).startswith(f"cron expression {expression!r}: ")
    assert "minute hour day month weekday" in str(error.value)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", ["*-*-* 3:0:00"]),
        ("0 3 * * 7", ["Sun *-*-* 3:0:00"]),
        ("*/20 1-3 1 feb *", ["*-2-1 1,2,3:0,20,40:00"]),
        ("0 3 1 * mon", ["*-*-1 3:0:00", "Mon *-*-* 3:0:00"]),  # either: the first, and every Monday
    ],
)
def test_a_cron_expression_as_systemd_writes_it(cron: str, expected: list[str]) -> None:
    assert on_calendar(cron) == expected


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd reads its own times")
@pytest.mark.parametrize(
    "cron",
    [
        "0 3 * * *",
        "*/7 1-5/2 * * *",
        "0 3 1,15 * mon-fri",
        "0 3 */2 * 1",
        "30 0 29 2 *",
        "0 6 * jan-mar 0",
        "5 4 1 * *",
    ],
)
def test_systemd_reads_the_times_that_croniter_does(cron: str) -> None:
    """The next ten of both, from one base time, in UTC."""
    base = datetime(2026, 11, 24, 12, 0)
    found = set()
    for value in on_calendar(cron):
        command = ["systemd-analyze", "calendar", "--iterations=10", f"--base-time={base}", value]
        done = subprocess.run(command, env={"TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True)
        stamps = [line.split(": ")[1] for line in done.stdout.splitlines() if "elapse:" in line or "Iter." in line]
        found |= {datetime.strptime(stamp[4:], "%Y-%m-%d %H:%M:%S UTC") for stamp in stamps}
    times = croniter(cron, base, implement_cron_bug=True)
    assert sorted(found)[:10] == [times.get_next(datetime) for _ in range(10)]


def test_a_time_is_due_in_its_own_minute() -> None:
    assert last_due("0 3 * * *", at(24, 3)) == at(24, 3)
    assert last_due("0 3 * * *", at(24, 3) + timedelta(seconds=59)) == at(24, 3)
    assert last_due("0 3 * * *", at(24, 2, 59)) == at(23, 3)


@pytest.fixture
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_berlin")
@pytest.mark.parametrize("day", [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)])
def test_when_the_clock_is_put_forward_or_back_a_daily_time_is_due_once(day: datetime) -> None:
    covered, ran = day - timedelta(hours=2), []
    for minute in range(-120, 6 * 60):
        now = day + timedelta(minutes=minute)
        if last_due("30 2 * * *", now) > covered:
            ran.append(now)
            covered = now
    assert len(ran) == 1


# --- cron ---------------------------------------------------------------------------------------


def test_the_lines_stand_between_markers_and_others_are_left_alone(machine: Machine) -> None:
    machine.with_cron()
    machine.crontab.write_text(OTHERS)
    assert install(job("0 3 * * *"), machine.home, at(24, 12)) == f"crontab, {name_of(machine.home)}"
    install(job("0 4 * * *"), machine.home, at(24, 12))
    lines = machine.crontab.read_text().removeprefix(OTHERS).splitlines()
    name = name_of(machine.home)
    assert lines[0] == f"# {name} begin (agentps schedule)"
    assert lines[-1] == f"# {name} end (agentps schedule)"
    assert [line[:9] for line in lines[1:-1]] == ["0 4 * * *", "37 * * * "], "the second call replaced the first"
    assert machine.crontab.read_text().startswith(OTHERS)
    assert installed_in(machine.home) == f"crontab, {name}"
    assert remove(machine.home)
    assert machine.crontab.read_text() == OTHERS
    assert installed_in(machine.home) is None
    assert not remove(machine.home)


def test_a_user_without_a_crontab_gets_one(machine: Machine) -> None:
    machine.with_cron()
    install(job(), machine.home, at(24, 12))
    assert len(machine.crontab.read_text().splitlines()) == 4


def test_two_clones_stand_beside_each_other(machine: Machine, tmp_path: Path) -> None:
    machine.with_cron()
    other = tmp_path / "other"
    install(job("0 3 * * *"), machine.home, at(24, 12))
    install(job("0 4 * * *"), other, at(24, 12))
    assert name_of(other) != name_of(machine.home)
    assert remove(machine.home)
    assert installed_in(other) is not None
    assert not [line for line in machine.crontab.read_text().splitlines() if line.startswith("0 3")]


def test_what_a_shell_of_cron_gets_to_run_are_the_words_that_were_meant(machine: Machine) -> None:
    machine.script("agentps", 'echo "$AGENTPS_HOME|$*"')
    for line in crontab_lines(job(), machine.home):
        command = line.split(maxsplit=5)[5].removesuffix(" >/dev/null").replace("\\%", "%")  # as cron does
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == f"{machine.home}|run-scheduled\n"
    assert "%" not in crontab_lines(job(), machine.home)[0].replace("\\%", ""), "cron ends a line there"


def test_a_marker_without_its_other_half_is_refused_before_anything_is_lost(machine: Machine) -> None:
    machine.with_cron()
    broken = f"{OTHERS}# {name_of(machine.home)} begin (agentps schedule)\n6 6 * * * /usr/bin/true\n"
    machine.crontab.write_text(broken)
    with pytest.raises(ScheduleError, match="repair it with `crontab -e`"):
        install(job(), machine.home, at(24, 12))
    assert machine.crontab.read_text() == broken


def test_a_crontab_that_refuses_is_an_error_with_its_words(machine: Machine) -> None:
    machine.script("crontab", 'echo "you are not allowed to use this program" >&2; exit 1')
    with pytest.raises(ScheduleError, match="you are not allowed to use this program"):
        install(job(), machine.home, at(24, 12))
    assert Files(machine.home).read_job() is None


def test_a_machine_without_a_scheduler_is_an_error(machine: Machine) -> None:
    with pytest.raises(ScheduleError, match="neither `systemctl --user` nor `crontab`"):
        install(job(), machine.home, at(24, 12))


# --- systemd ------------------------------------------------------------------------------------


def test_where_systemd_answers_it_gets_a_timer_and_cron_nothing(machine: Machine) -> None:
    machine.with_cron()
    install(job("0 3 * * *"), machine.home, at(24, 12))
    machine.with_systemd()
    name = name_of(machine.home)
    assert install(job("0 4 * * *"), machine.home, at(24, 12)) == f"systemd timer {name}"
    assert machine.crontab.read_text() == "", "moved, not doubled"
    install(job("0 5 * * *"), machine.home, at(24, 12))
    assert "OnCalendar=*-*-* 5:0:00\nPersistent=true\n" in machine.unit("timer").read_text()
    assert sorted(path.name for path in machine.unit("timer").parent.iterdir()) == [f"{name}.service", f"{name}.timer"]
    assert machine.calls.read_text().splitlines()[-3:] == [
        "--user daemon-reload",
        f"--user enable {name}.timer",
        f"--user restart {name}.timer",
    ]
    assert remove(machine.home)
    assert list(machine.unit("timer").parent.iterdir()) == []
    assert f"--user disable --now {name}.timer" in machine.calls.read_text().splitlines()


def test_a_timer_that_cannot_be_reached_is_not_doubled_by_cron(machine: Machine) -> None:
    machine.with_cron()
    machine.with_systemd()
    install(job(), machine.home, at(24, 12))
    machine.with_systemd(reachable=False)
    for action in (lambda: install(job(), machine.home, at(24, 12)), lambda: remove(machine.home)):
        with pytest.raises(ScheduleError, match="in a login session of its user"):
            action()
    assert machine.unit("timer").exists()
    assert not machine.crontab.exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd verifies its own units")
def test_systemd_accepts_the_units(machine: Machine, tmp_path: Path) -> None:
    machine.script("agentps", "true")
    for kind, text in units("agentps-test", job("0 3 1 * mon"), machine.home).items():
        (tmp_path / f"agentps-test.{kind}").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "agentps-test.timer")]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "warning"}, capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "agentps-test" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_service_hands_on_the_home_as_it_is(machine: Machine) -> None:
    text = units("agentps-test", job(), machine.home)["service"]
    home = str(machine.home).replace("%", "%%").replace("$", "$$")
    assert f'ExecStart=/usr/bin/env "AGENTPS_HOME={home}" "{machine.bin}/agentps" "run-scheduled"\n' in text


# --- the run ------------------------------------------------------------------------------------


@pytest.fixture
def scheduled(machine: Machine) -> Machine:
    """At noon of the 23rd, for every day at three."""
    machine.with_cron()
    machine.zenml('echo "hello from the run"')
    install(job(), machine.home, at(23, 12))
    return machine


def test_a_due_time_runs_the_literal_command_in_the_repository_and_keeps_its_output(scheduled: Machine) -> None:
    outcome = run_due(scheduled.home, at(24, 3))
    assert outcome.code == 0
    assert scheduled.ran.read_text() == f"{REPOSITORY}: pipeline run agentps_training\n"
    assert scheduled.logs == ["$ zenml pipeline run agentps_training\nhello from the run\n"]
    assert "succeeded" in outcome.line


def test_the_config_is_handed_on(machine: Machine, tmp_path: Path) -> None:
    machine.with_cron()
    machine.zenml("true")
    install(job(config=tmp_path / "mine.yaml"), machine.home, at(23, 12))
    assert run_due(machine.home, at(24, 3)).code == 0
    assert machine.ran.read_text().endswith(f"pipeline run agentps_training -c {tmp_path}/mine.yaml\n")


def test_nothing_is_run_before_its_time_nor_twice_for_one(scheduled: Machine) -> None:
    assert "the next time is 2026-11-24 03:00" in run_due(scheduled.home, at(24, 2, 59)).line
    assert scheduled.runs == 0
    for minute in (0, 1, 37, 97):
        assert run_due(scheduled.home, at(24, 3) + timedelta(minutes=minute)).code == 0
    assert scheduled.runs == 1


def test_missed_runs_are_caught_up_once(scheduled: Machine) -> None:
    """The machine was off for three nights: one run at the first look after it, none at the next."""
    run_due(scheduled.home, at(24, 3))
    assert "succeeded" in run_due(scheduled.home, at(27, 10, 37)).line
    assert "nothing is due" in run_due(scheduled.home, at(27, 11, 37)).line
    run_due(scheduled.home, at(28, 3))
    assert scheduled.runs == 3


def test_a_new_schedule_does_not_catch_up_what_was_before_it(scheduled: Machine) -> None:
    install(job("0 11 * * *"), scheduled.home, at(25, 12))
    run_due(scheduled.home, at(25, 12, 37))
    assert scheduled.runs == 0


def test_without_a_schedule_the_command_says_so(machine: Machine) -> None:
    with pytest.raises(ScheduleError, match="make one with `agentps schedule"):
        run_due(machine.home, at(24, 3))


def test_the_run_gets_the_variables_of_the_file_and_the_environments_programs(scheduled: Machine) -> None:
    (scheduled.home / "schedule.env").write_text("OPENAI_API_KEY='a$b'\n")
    scheduled.zenml('echo "$OPENAI_API_KEY $AGENTPS_HOME"')
    scheduled.script("zenml", f'/usr/bin/env > "{scheduled.ran}"')
    text = (scheduled.bin / "zenml").read_text().replace("PATH=/usr/bin:/bin\n", "")
    (scheduled.bin / "zenml").write_text(text)
    assert run_due(scheduled.home, at(24, 3)).code == 0
    found = dict(line.split("=", 1) for line in scheduled.ran.read_text().splitlines() if "=" in line)
    assert (found["OPENAI_API_KEY"], found["AGENTPS_HOME"]) == ("a$b", str(scheduled.home))
    assert found["PATH"].split(":")[0] == str(scheduled.bin)


def test_old_logs_are_pruned(scheduled: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "KEPT_LOGS", 2)
    for day in (24, 25, 26):
        run_due(scheduled.home, at(day, 3))
    kept = sorted(path.stem for path in Files(scheduled.home).logs.iterdir())
    assert kept == [f"{at(day, 3).astimezone(UTC):%Y%m%dT%H%M%SZ}" for day in (25, 26)]


_PROCESS = """
import sys
from datetime import datetime
from pathlib import Path
from infra import schedule
schedule.BIN = Path(sys.argv[1])
outcome = schedule.run_due(Path(sys.argv[2]), datetime.fromisoformat(sys.argv[3]))
print(outcome.line)
sys.exit(outcome.code)
"""


def process(machine: Machine, now: datetime) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROCESS, str(machine.bin), str(machine.home), now.isoformat()],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_two_processes_at_once_make_one_run_and_the_second_ends_at_once(scheduled: Machine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    scheduled.zenml(f'while [ ! -e "{go}" ]; do sleep 0.02; done; exit 7')
    first = process(scheduled, at(24, 3))
    wait_for(lambda: scheduled.runs == 1)
    second = process(scheduled, at(24, 3))
    said, _ = second.communicate(timeout=60)
    assert (second.returncode, said) == (
        0,
        "agentps_training: the run before is still going: nothing was started\n",
    )
    assert first.poll() is None, "the second did not wait for the first"
    state = Files(scheduled.home).read_state()
    assert state is not None
    assert state.running is not None, "it left alone what the first wrote"
    third = process(scheduled, at(25, 3))  # a whole day long: that time is left out, not put off
    assert third.wait(timeout=60) == 0
    go.touch()
    assert first.wait(timeout=60) == 7, "the pipeline's own code"
    first.communicate()
    third.communicate()
    assert "nothing is due" in run_due(scheduled.home, at(25, 4)).line
    assert scheduled.runs == 1


def test_a_killed_runner_leaves_the_lock_to_its_pipeline_and_the_next_one_tells_of_it(
    machine: Machine, tmp_path: Path
) -> None:
    machine.with_cron()
    told = tmp_path / "told"
    machine.script("tell", f'cat >> "{told}"')
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"notify": {"command": str(machine.bin / "tell")}}))
    install(job(config=config), machine.home, at(23, 12))
    go, pid = tmp_path / "go", tmp_path / "pid"
    machine.zenml(f'echo "half way"; echo $$ > "{pid}"; while [ ! -e "{go}" ]; do sleep 0.02; done')
    runner = process(machine, at(24, 3))
    wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    runner.communicate()
    assert "still going" in run_due(machine.home, at(24, 4)).line
    go.touch()

    def ended() -> bool:
        return "still going" not in run_due(machine.home, at(24, 5)).line

    wait_for(ended)
    assert machine.runs == 1, "what began is not run again before its next time"
    lines = told.read_text().splitlines()
    assert len(lines) == 1, "told once"
    assert "agentps_training failed: the run that began at 2026" in lines[0]
    assert "was cut off: half way (log " in lines[0]


# --- the notice ---------------------------------------------------------------------------------


class Hook(HTTPServer):
    """Keeps what is posted to it, and answers `status`."""

    def __init__(self, status: int) -> None:
        received: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.received = received
        self.url = f"http://127.0.0.1:{self.server_port}/services/secret"


@pytest.fixture
def hook() -> Iterator[Callable[[int], Hook]]:
    running: list[Hook] = []

    def start(status: int = 200) -> Hook:
        server = Hook(status)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


FAILS = (
    'echo "Step annotate failed."; echo; echo "Error: annotator openai:gpt-4o: no answer:"; echo " check it"; exit 3'
)


def failing(machine: Machine, tmp_path: Path, **notify: str) -> None:
    machine.with_cron()
    machine.zenml(FAILS)
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"posts": "gone.jsonl", "notify": notify}))
    install(job(config=config, notify=load_notify(config)), machine.home, at(23, 12))


def test_a_failed_run_reaches_the_webhook_and_the_command_in_one_line(
    machine: Machine, tmp_path: Path, hook: Callable[..., Hook]
) -> None:
    server, told = hook(), tmp_path / "told"
    machine.script("tell", f'echo "$1" > "{told}"; cat >> "{told}"')
    failing(machine, tmp_path, webhook=server.url, command=f"'{machine.bin}/tell' 'two words'")
    machine.script("python", 'echo \'{"run": "agentps_training-7", "step": "annotate"}\'')
    outcome = run_due(machine.home, at(24, 3))
    assert (outcome.code, outcome.undelivered) == (3, [])
    ((kind, body),) = server.received
    assert kind == "application/json"
    assert set(body) == {"text"}
    assert (
        "agentps_training failed: run agentps_training-7, step annotate: "
        "annotator openai:gpt-4o: no answer: check it (exit code 3, log " in body["text"]
    )
    assert told.read_text() == f"two words\n{body['text']}\n"
    assert outcome.line == body["text"]
    assert machine.logs[0].endswith(f"agentps: {body['text']}\n")


@pytest.mark.parametrize("status", [None, 404])
def test_a_notice_that_cannot_be_delivered_is_logged_and_the_runs_own_code_stays(
    machine: Machine, tmp_path: Path, hook: Callable[..., Hook], status: int | None
) -> None:
    url = "http://127.0.0.1:9/services/secret" if status is None else hook(status).url
    failing(machine, tmp_path, webhook=url, command=str(tmp_path / "nowhere"))
    outcome = run_due(machine.home, at(24, 3))
    assert outcome.code == 3
    assert len(outcome.undelivered) == 2
    assert outcome.undelivered[0].startswith("the notice was not delivered: webhook: ")
    assert "No such file" in outcome.undelivered[1]
    assert "secret" not in "".join(outcome.undelivered), "logs are shown to others"
    assert machine.logs[0].splitlines()[-2:] == [f"agentps: {text}" for text in outcome.undelivered]
    assert "no run was made: annotator openai:gpt-4o: no answer: check it" in outcome.line


def test_one_of_two_ways_that_fails_does_not_stop_the_other(tmp_path: Path, machine: Machine) -> None:
    machine.script("tell", f'cat > "{tmp_path / "told"}"; echo no >&2; exit 4')
    command = str(machine.bin / "tell")
    undelivered = send("a line", NotifySettings(webhook="http://127.0.0.1:9/", command=command))
    assert (tmp_path / "told").read_text() == "a line\n"
    assert undelivered[1] == f"the notice was not delivered: command {command}: exit code 4: no"


def test_a_config_that_can_no_longer_be_read_is_told_of_where_it_used_to_say(machine: Machine, tmp_path: Path) -> None:
    told = tmp_path / "told"
    machine.script("tell", f'cat > "{told}"')
    failing(machine, tmp_path, command=str(machine.bin / "tell"))
    (tmp_path / "mine.yaml").write_text("posts: [")
    assert run_due(machine.home, at(24, 3)).code == 3
    assert "agentps_training failed" in told.read_text()


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [("kill -9 $$", 137, "ended by SIGKILL"), (None, 127, "No such file or directory")],
)
def test_a_run_that_was_killed_or_could_not_start_is_a_failed_run(
    machine: Machine, tmp_path: Path, body: str | None, code: int, reason: str
) -> None:
    told = tmp_path / "told"
    machine.script("tell", f'cat > "{told}"')
    failing(machine, tmp_path, command=str(machine.bin / "tell"))
    if body is None:
        (machine.bin / "zenml").unlink()
    else:
        machine.zenml(body)
    assert run_due(machine.home, at(24, 3)).code == code
    assert reason in told.read_text()
    assert told.read_text().count("\n") == 1


def test_a_long_reason_is_cut(machine: Machine, tmp_path: Path) -> None:
    failing(machine, tmp_path)
    machine.zenml("printf 'x%.0s' $(seq 9000); exit 1")
    assert "x" * 499 + "… (exit code 1" in run_due(machine.home, at(24, 3)).line


@step(enable_cache=False)
def breaks() -> None:
    raise AgentPSError("posts.jsonl:3: no title: write one")


@pipeline(name="broken", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)  # as ours have it
def broken() -> None:
    breaks()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:zenml")  # it reads a field that it deprecated
def test_zenml_knows_the_run_the_step_and_the_reason(own_zenml: Client) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert find("broken", before) == {}, "a pipeline that never ran"
    with pytest.raises(AgentPSError):
        broken()
    found = find("broken", before)
    assert found["run"].startswith("broken-")
    assert (found["step"], found["reason"]) == ("breaks", "posts.jsonl:3: no title: write one")
    assert find("broken", datetime.now(UTC) + timedelta(seconds=2)) == {}, "only the run that was started"


def test_neither_zenml_nor_torch_is_imported_for_a_look_at_the_clock() -> None:
    code = (
        "import sys, infra.schedule, infra.failed_run; sys.exit(bool({'zenml', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
