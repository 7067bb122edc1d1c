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
