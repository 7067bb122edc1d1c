"""The times of a cron expression."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from croniter import croniter
from croniter.croniter import CroniterError

from model.errors import ConfigError


def check_cron(expression: str) -> str:
    """The expression with single spaces.

    Raises:
        ConfigError: cron would not understand it, or its time never comes.
    """
    fields = expression.split()
    expected = 'five fields were expected, minute hour day month weekday, for example "0 3 * * *" for every day at 3:00'
    # croniter knows more than cron does: seconds, L, #, random times
    if len(fields) != 5 or not all(re.fullmatch(r"[0-9*,/-]+", re.sub(r"[a-z]{3}", "0", f.lower())) for f in fields):
        raise ConfigError(f"cron expression {expression!r}: {expected}")
    try:
        croniter(" ".join(fields), datetime(2026, 1, 1)).get_next(datetime)
    except CroniterError as error:
        raise ConfigError(f"cron expression {expression!r}: {error}: {expected}") from error
    return " ".join(fields)


def last_due(cron: str, now: datetime) -> datetime:
    """The latest time of the expression at or before `now`; both with a zone, the answer in the machine's.

    A time that the clock shows twice in autumn is its first showing; one that spring leaves out is as long before.
    """
    local = now.astimezone().replace(tzinfo=None)
    next_minute = local.replace(second=0, microsecond=0) + timedelta(minutes=1)
    found: datetime = croniter(cron, next_minute, implement_cron_bug=True).get_prev(datetime)
    # one that would come out later than `now` would be run now and once more then
    return min(found.replace(fold=fold).astimezone() for fold in (0, 1))


def next_due(cron: str, now: datetime) -> datetime:
    """The first time of the expression after `now`, in the machine's zone."""
    local = now.astimezone().replace(tzinfo=None)
    found: datetime = croniter(cron, local, implement_cron_bug=True).get_next(datetime)
    return found.astimezone()
