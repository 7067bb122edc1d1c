"""`-c FILE` means the same to every command: options in each of their places, and no unknown ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from tests.support.annotator import Server

#: Each command that takes a run file, with what else it needs.
COMMANDS = {
    "plan": ["--posts", "posts.jsonl", "--task", "ucc"],
    "annotate": ["--posts", "posts.jsonl", "--task", "ucc", "--out", "labels.parquet"],
    "trial": ["--posts", "posts.jsonl", "--task", "ucc", "--out", "trial.html"],
    "agreement": ["--posts", "posts.jsonl", "--task", "ucc", "--labels", "posts.jsonl"],
    "queue": ["--posts", "posts.jsonl", "--task", "ucc", "--out", "q.csv", *["--labels", "posts.jsonl"] * 2],
    "history": [],
    "compare": ["1", "2"],
    "promote": ["1", "--because", "x"],
    "rollback": ["--because", "x"],
    "recalibrate": [],
    "score": ["--posts", "posts.jsonl"],
    "live": [],
    "serve": [],
}
CAPS = (
    "annotate: {max_cost: 0.00001}\n",
    "parameters: {annotate: {max_cost: 0.00001}}\n",
    "parameters: {options: {annotate: {max_cost: 0.00001}}}\n",
)


@pytest.fixture(autouse=True)
def workplace(manifest: Path, agentps_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(manifest.parent)


def call(command: str, text: str) -> Result:
    Path("run.yaml").write_text(text)
    return CliRunner().invoke(main, [command, *COMMANDS[command], "--config", "run.yaml"], catch_exceptions=False)


@pytest.mark.parametrize("text", CAPS)
@pytest.mark.parametrize("command", ["annotate", "trial"])
def test_a_cap_in_dollars_holds_wherever_it_stands(server: Server, command: str, text: str) -> None:
    result = call(command, text)
    assert result.exit_code == 1
    assert "annotate.max_cost" in result.output
    assert server.requests == [], "nothing is paid for under a cap below the price of one post"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anotate: {max_cost: 5}\n", "anotate: unknown key"),
        ("parameters: {anotate: {max_cost: 5}}\n", "parameters.anotate: unknown key"),
        ("parameters: {annotate: {max_costs: 5}}\n", "annotate.max_costs: unknown key"),
        ("fine_tune: {epochs: 0}\n", "fine_tune.epochs: "),
        ("annotate: {max_cost: 5, max_cost: 500}\n", "cannot be read as YAML: in the mapping"),
        ("annotate: {max_cost: 5}\nannotate: {model: x}\n", "cannot be read as YAML: in the mapping"),
        ("annotate: {max_cost: 2025-13-45}\n", "cannot be read as YAML: month must be"),
        ("parameters: []\nannotate: {max_cost: 5}\n", "parameters: a mapping was expected, found list"),
    ],
)
def test_a_wrong_key_ends_every_command_with_one_message(command: str, text: str, message: str) -> None:
    result = call(command, text)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: config run.yaml: {message}")


def test_a_change_that_is_given_twice_is_refused(server: Server) -> None:
    twice = ["--set", "max_cost=5", "--set", "model=x", "--set", "max_cost=500"]
    result = CliRunner().invoke(main, ["annotate", *COMMANDS["annotate"], *twice], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.output == "Error: --set max_cost=500: max_cost is set twice: keep one\n"
    assert server.requests == []


@pytest.mark.parametrize("change", ["max_cost=", "max_cost= ", "max_cost=2025-13-45", "max_cost: 5"])
def test_a_change_without_a_value_that_can_be_read_is_refused(server: Server, change: str) -> None:
    result = CliRunner().invoke(main, ["annotate", *COMMANDS["annotate"], "--set", change], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: --set {change}: ")
    assert server.requests == []
