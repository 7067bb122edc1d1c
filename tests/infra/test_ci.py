"""A fork has CI at once: both files run what a developer runs, and nothing of their own."""

from __future__ import annotations

import os

from model.yaml_file import load_yaml
from steps.paths import REPOSITORY


def test_github_and_gitlab_call_the_one_command() -> None:
    github = load_yaml(REPOSITORY / ".github" / "workflows" / "ci.yml")["jobs"]["run"]["steps"]
    gitlab = load_yaml(REPOSITORY / ".gitlab-ci.yml")["run"]["script"]
    for commands in ([step["run"] for step in github if "run" in step], gitlab):
        assert commands[-1] == ".ci/run"
        assert all("apt-get" in command for command in commands[:-1])
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_each_night_both_call_the_command_that_makes_the_teams_stack_and_the_image() -> None:
    workflow = load_yaml(REPOSITORY / ".github" / "workflows" / "ci.yml")
    assert workflow["jobs"]["team"]["steps"][-1]["run"].split()[-1] == ".ci/team"
    assert "schedule" in workflow["jobs"]["team"]["if"]
    gitlab = load_yaml(REPOSITORY / ".gitlab-ci.yml")["team"]
    assert gitlab["script"] == [".ci/team"]
    assert gitlab["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    assert os.access(REPOSITORY / ".ci" / "team", os.X_OK)
