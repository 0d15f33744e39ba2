"""Cron schedules as CronJob understands them: "*/5 9-17 * * mon-fri", "@hourly", "@every 90s".

The dialect is that of Kubernetes (github.com/robfig/cron, ParseStandard), which no cron library for Python has: five fields;
"?" is "*"; Sunday is 0 and never 7; "a/n" counts from a to the end of the range; a day matches both day fields where one is
"*", else either; no "L", "W", "#".

Rules it keeps: times are seconds since the epoch; a wall-clock time that a change to summer time leaves out never comes, one that
comes twice comes twice. Order to read: parse, the fields, Calendar, Every.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import product
from zoneinfo import ZoneInfo

from msgspec import Struct

NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
WEEKDAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
NO_NAMES: dict[str, int] = {}
FIELDS = (
    ("minute", 0, 59, NO_NAMES),
    ("hour", 0, 23, NO_NAMES),
    ("day of month", 1, 31, NO_NAMES),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, WEEKDAYS),
)
HORIZON = 5 * 366  # days: a schedule with no time in five years (30 February) has none
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?:h|ms|us|µs|ns|m|s))+")


@lru_cache(maxsize=512)
def parse(text: str, zone: str = "") -> Calendar | Every:
    """The schedule; its wall clock is that of `zone` (IANA's name; "" is UTC). ValueError says what is wrong with which field."""
    if text.startswith(("TZ=", "CRON_TZ=")):
        raise ValueError("TZ and CRON_TZ cannot be used in a schedule, use timeZone")
    clock: tzinfo = zone_of(zone) if zone else UTC
    if text.startswith("@every "):
        return Every(_duration(text.removeprefix("@every ")))
    if text.startswith("@") and text not in NAMED:
        raise ValueError(f"{text!r} is not one of {', '.join(NAMED)} and @every DURATION")
    words = NAMED.get(text, text).split()
    if len(words) != len(FIELDS):
        raise ValueError(f"{text!r} has {len(words)} fields, a schedule has five: minute, hour, day of month, month, day of week")
    (minutes, _), (hours, _), (days, any_day), (months, _), (weekdays, any_weekday) = map(_field, words, FIELDS)
    return Calendar(minutes, hours, days, months, weekdays, any_day or any_weekday, clock)


def zone_of(name: str) -> ZoneInfo:
    """ValueError if there is no such zone. "Local" is refused as Kubernetes does: it would be the server's."""
    try:
        if name.lower() != "local":
            return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        pass
    raise ValueError(f"{name!r} is not a time zone")


# --- one field --------------------------------


def _field(word: str, field: tuple[str, int, int, dict[str, int]]) -> tuple[frozenset[int], bool]:
    """The numbers a field admits, and whether it is a mere "*"."""
    values: set[int] = set()
    star = False
    for part in word.split(","):
        numbers, whole = _range(part, *field)
        values.update(numbers)
        star |= whole
    return frozenset(values), star


def _range(part: str, name: str, low: int, high: int, names: dict[str, int]) -> tuple[range, bool]:
    def number(text: str) -> int:
        known = names.get(text.lower())
        if known is None and not (text.isascii() and text.isdigit()):
            raise ValueError(f"{name}: {text!r} is not a number" + (" or a name of three letters" if names else ""))
        return int(text) if known is None else known

    span, slash, step_text = part.partition("/")
    step = number(step_text) if slash else 1
    if not step:
        raise ValueError(f"{name}: the step in {part!r} is 0")
    if span in ("*", "?"):
        return range(low, high + 1, step), step == 1
    first_text, dash, last_text = span.partition("-")
    first = number(first_text)
    last = number(last_text) if dash else high if slash else first
    if first < low or last > high:
        raise ValueError(f"{name}: {part!r} is not within {low}-{high}")
    if first > last:
        raise ValueError(f"{name}: {part!r} begins after its end")
    return range(first, last + 1, step), False


def _duration(text: str) -> float:
    """Go's notation, in whole seconds, at least one (as robfig/cron rounds it)."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration like 1h30m or 90s")
    found = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|ns|m|s)", text)
    return max(1.0, math.floor(sum(float(number) * _UNITS[unit] for number, unit in found)))


# --- schedules --------------------------------


class Calendar(Struct, frozen=True):
    """Five fields. `both_days`: a day must match `days` and `weekdays` (one of them is "*"); else one of the two is enough."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both_days: bool
    zone: tzinfo

    def next(self, after: float) -> float | None:
        """The first time later than `after`."""
        return next((time for day in self._days(after, 1) for time in self._times(day) if time > after), None)

    def latest(self, after: float, until: float) -> float | None:
        """The last time later than `after` and not later than `until`."""
        for day in self._days(until, -1):
            for time in reversed(self._times(day)):
                if time <= until:
                    return time if time > after else None
        return None

    def _days(self, start: float, way: int) -> Iterable[date]:
        first = datetime.fromtimestamp(start, self.zone).date()
        # the day before it, too: at the change from summer time a day's last hour may be the next one's first
        return filter(self._matches, (first + timedelta(days=way * number) for number in range(-1, HORIZON)))

    def _matches(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (in_month and in_week) if self.both_days else (in_month or in_week)

    def _times(self, day: date) -> list[float]:
        times = set()
        for hour, minute, fold in product(self.hours, self.minutes, (0, 1)):
            wall = datetime(day.year, day.month, day.day, hour, minute, fold=fold, tzinfo=self.zone)
            time = wall.timestamp()
            if datetime.fromtimestamp(time, self.zone).hour == hour:  # else the clock leaves it out
                times.add(time)
        return sorted(times)


class Every(Struct, frozen=True):
    """Every `period` seconds after the time it is asked for."""

    period: float

    def next(self, after: float) -> float | None:
        return math.floor(after) + self.period

    def latest(self, after: float, until: float) -> float | None:
        count = math.floor((until - math.floor(after)) / self.period)
        return math.floor(after) + count * self.period if count > 0 else None
