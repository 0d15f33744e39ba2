"""What every test may rely on: the marker `root`, and that nothing is skipped silently.

A test marked `root` makes namespaces and TAP devices. Where that is not possible it is skipped, and the summary says why; with
CI or PODWIRE_REQUIRE_ROOT=1 in the environment such a skip is a failure, so that a run that says "passed" has run everything.

The datapath's sources are what is tested, unless PODWIRE_COMPILED=require asks for their compiled build (scripts/compile), for
which the same tests hold, but those marked `interpreted`.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

from podwire import preflight
from podwire.paths import ClusterError

# On a busy machine the first draw of a test alone may take a second; no test here is about time.
settings.register_profile("podwire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("podwire")

os.environ.setdefault("PODWIRE_COMPILED", "off")
REQUIRED = bool(os.environ.get("CI") or os.environ.get("PODWIRE_REQUIRE_ROOT"))


@cache
def missing_privilege() -> str:
    """Why tests marked `root` cannot run here, or ""."""
    if os.geteuid() != 0:
        return "not root"
    try:
        preflight.check_tun()
        preflight.check_namespaces()
    except ClusterError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ["PODWIRE_COMPILED"] != "off":
        for item in items:
            if item.get_closest_marker("interpreted"):
                item.add_marker(pytest.mark.skip(reason="patches what the compiled build has inlined"))
    if REQUIRED or not any(item.get_closest_marker("root") for item in items):
        return
    if reason := missing_privilege():
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=f"needs root: {reason}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and (reason := missing_privilege()):
        pytest.fail(f"this test needs root and must not be skipped here: {reason}", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)
    ]
    measured = [
        (report.nodeid, name, value) for report in reports if report.when == "call" for name, value in report.user_properties
    ]
    if measured:
        terminalreporter.section("measured")
        for nodeid, name, value in measured:
            shown = f"{value:.3f}" if isinstance(value, float) else value
            terminalreporter.line(f"{nodeid.rpartition('::')[2]}: {name} {shown}")
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "needs root" in str(report.longrepr)]
    if skipped:
        terminalreporter.section("not everything was tested", sep="!")
        terminalreporter.line(f"{len(skipped)} tests that need root were skipped: {missing_privilege()}")
