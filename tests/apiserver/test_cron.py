"""Schedules: what they mean, and what is refused. The oracle is a walk over every minute."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_apiserver.cron import parse


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def said(time: float | None, zone: str = "UTC") -> str | None:
    return None if time is None else datetime.fromtimestamp(time, ZoneInfo(zone)).isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("schedule", "after", "following"),
    [
        ("* * * * *", "2026-03-01T10:00", "2026-03-01T10:01"),
        ("*/15 * * * *", "2026-03-01T10:45", "2026-03-01T11:00"),
        ("20-35/15 * * * *", "2026-03-01T10:20", "2026-03-01T10:35"),
        ("50/5 * * * *", "2026-03-01T10:50", "2026-03-01T10:55"),
        ("0 9-17 * * mon-fri", "2026-02-27T17:00", "2026-03-02T09:00"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2028-02-29T00:00"),
        ("0 0 13 * fri", "2026-03-01T00:00", "2026-03-06T00:00"),  # either of the two days
        ("0 0 */2 * fri", "2026-03-01T00:00", "2026-03-03T00:00"),  # a step is no mere star
        ("0 0 * * 0", "2026-03-01T00:00", "2026-03-08T00:00"),
        ("@hourly", "2026-03-01T10:01", "2026-03-01T11:00"),
        ("@yearly", "2026-03-01T10:01", "2027-01-01T00:00"),
        ("0 0 ? DEC Sun", "2026-03-01T00:00", "2026-12-06T00:00"),
        ("@every 1h30m", "2026-03-01T10:00", "2026-03-01T11:30"),
    ],
)
def test_the_next_time(schedule, after, following):
    assert said(parse(schedule).next(at(after))) == at_text(following)


def at_text(text: str) -> str:
    return f"{text}+00:00"


def test_a_day_that_never_comes():
    assert parse("0 0 30 2 *").next(at("2026-01-01T00:00")) is None


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("often", "'often' has 1 fields"),
        ("* * * *", "has 4 fields"),
        ("60 * * * *", "minute: '60' is not within 0-59"),
        ("* 24 * * *", "hour: '24' is not within 0-23"),
        ("* * 0 * *", "day of month: '0' is not within 1-31"),
        ("* * * 13 *", "month: '13' is not within 1-12"),
        ("* * * * 7", "day of week: '7' is not within 0-6"),
        ("5-1 * * * *", "minute: '5-1' begins after its end"),
        ("*/0 * * * *", "minute: the step in '*/0' is 0"),
        ("a * * * *", "minute: 'a' is not a number"),
        ("* * * * fryday", "day of week: 'fryday' is not a number or a name of three letters"),
        ("1,,2 * * * *", "minute: '' is not a number"),
        ("@often", "'@often' is not one of @yearly"),
        ("@every 5", "'5' is not a duration"),
        ("TZ=UTC * * * * *", "use timeZone"),
    ],
)
def test_what_is_refused(schedule, problem):
    with pytest.raises(ValueError, match=r".") as refused:
        parse(schedule)
    assert problem in str(refused.value)


@pytest.mark.parametrize("zone", ["No/Where", "Local", "../etc/passwd", ""])
def test_zones(zone):
    if zone:
        with pytest.raises(ValueError, match="is not a time zone"):
            parse("@daily", zone)
    else:
        assert said(parse("@daily", zone).next(at("2026-01-01T12:00"))) == "2026-01-02T00:00+00:00"


class TestSummerTime:
    ZONE = "Europe/Berlin"

    def test_a_time_that_is_left_out_never_comes(self):
        after = parse("30 2 * * *", self.ZONE).next(at("2026-03-28T03:00", self.ZONE))
        assert said(after, self.ZONE) == "2026-03-30T02:30+02:00"

    def test_a_time_that_comes_twice_comes_twice(self):
        schedule = parse("30 2 * * *", self.ZONE)
        first = schedule.next(at("2026-10-24T03:00", self.ZONE))
        assert said(first, self.ZONE) == "2026-10-25T02:30+02:00"
        assert said(schedule.next(first), self.ZONE) == "2026-10-25T02:30+01:00"

    def test_every_hour_goes_on(self):
        schedule, time = parse("@hourly", self.ZONE), at("2026-10-25T00:00", self.ZONE)
        for _ in range(6):
            following = schedule.next(time)
            assert following == time + 3600
            time = following


FIELD = st.sampled_from(["*", "*/7", "3", "1-5", "2,9", "4/3"])


@given(
    st.tuples(FIELD, FIELD, FIELD, FIELD, st.sampled_from(["*", "1-5", "sun", "*/2"])),
    st.integers(0, 400 * 24 * 60),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
)
def test_next_and_latest_are_what_a_walk_over_all_minutes_finds(fields, minute, zone):
    schedule = parse(" ".join(fields), zone)
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")) + timedelta(minutes=minute)
    minutes, hours, days, months, weekdays = (set(values) for values in _values(schedule))

    def matches(moment: datetime) -> bool:
        wall = moment.astimezone(ZoneInfo(zone))
        day, week = wall.day in days, (wall.weekday() + 1) % 7 in weekdays
        fits = (day and week) if schedule.both_days else (day or week)
        return wall.minute in minutes and wall.hour in hours and wall.month in months and fits

    span = [start + timedelta(minutes=number) for number in range(3 * 24 * 60)]
    expected = [moment.timestamp() for moment in span if matches(moment)]
    before = start.timestamp() - 1
    found = schedule.next(before)
    assert (found if found is not None and found <= span[-1].timestamp() else None) == (expected[0] if expected else None)
    assert schedule.latest(before, span[-1].timestamp()) == (expected[-1] if expected else None)


def _values(schedule):
    return schedule.minutes, schedule.hours, schedule.days, schedule.months, schedule.weekdays
