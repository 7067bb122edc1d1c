"""The alert rules: Prometheus' own tool runs their tests, and they ask for metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from model.yaml_file import load_yaml
from steps.paths import REPOSITORY

ALERTS = REPOSITORY / "infra" / "alerts"
RULES = [rule for group in load_yaml(ALERTS / "agentps.yaml")["groups"] for rule in group["rules"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_every_rule_passes_prometheus_own_tests() -> None:
    for command in (["check", "rules", "agentps.yaml"], ["test", "rules", "agentps.test.yaml"]):
        found = subprocess.run(["promtool", *command], cwd=ALERTS, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


def test_each_rule_is_tested_both_where_it_fires_and_where_it_must_not() -> None:
    tested: dict[str, set[bool]] = {}
    for test in load_yaml(ALERTS / "agentps.test.yaml")["tests"]:
        for check in test["alert_rule_test"]:
            tested.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert tested == {rule["alert"]: {True, False} for rule in RULES}


def test_rules_ask_for_metrics_of_the_code_and_the_page_says_what_to_do() -> None:
    code = "".join((REPOSITORY / "scoring" / name).read_text() for name in ("requests.py", "stream/metrics.py"))
    names = {name for rule in RULES for name in re.findall(r"agentps_\w+", rule["expr"])}
    page = (REPOSITORY / "docs" / "alerts.md").read_text()
    assert len(names) == 10
    for name in names:
        assert f'"{re.sub("_(total|bucket)$", "", name)}"' in code
    for rule in RULES:
        assert f"`{rule['alert']}`" in page
        assert rule["labels"]["severity"] in ("page", "ticket")
