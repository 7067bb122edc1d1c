from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.schedule.times import check_cron, last_due
from model.errors import ConfigError
from tests.infra.schedule.stand_ins import at


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
