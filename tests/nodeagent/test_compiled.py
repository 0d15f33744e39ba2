"""Which build of the datapath a process takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from podwire_nodeagent import compiled


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Sources and builds of the test's own; returns the folder of the present sources' build, which is not there yet."""
    (tmp_path / "sources/nested").mkdir(parents=True)
    (tmp_path / "sources/nested/one.py").write_text("ONE = 1\n")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(compiled, "BUILDS", tmp_path / "builds")
    monkeypatch.setenv("PODWIRE_COMPILED", "auto")
    return tmp_path / "builds" / compiled.digest()


def test_without_a_build_the_sources_run(place):
    assert compiled.build() is None


def test_a_build_of_these_sources_is_taken(place):
    (place / "datapath").mkdir(parents=True)
    assert compiled.build() == place


def test_a_change_of_any_source_falls_back(place):
    (place / "datapath").mkdir(parents=True)
    (compiled.SOURCES / "nested/one.py").write_text("ONE = 2\n")
    assert compiled.build() is None
    (compiled.SOURCES / "nested/one.py").write_text("ONE = 1\n")
    assert compiled.build() == place
    (compiled.SOURCES / "two.py").write_text("")
    assert compiled.build() is None


def test_off_is_off_and_a_required_build_must_be_there(place, monkeypatch):
    monkeypatch.setenv("PODWIRE_COMPILED", "require")
    with pytest.raises(ImportError, match="scripts/compile"):
        compiled.build()
    (place / "datapath").mkdir(parents=True)
    assert compiled.build() == place
    monkeypatch.setenv("PODWIRE_COMPILED", "off")
    assert compiled.build() is None
    monkeypatch.setenv("PODWIRE_COMPILED", "yes")
    with pytest.raises(ImportError, match="PODWIRE_COMPILED=yes: it is one of auto, off, require"):
        compiled.build()


def test_the_datapath_runs_what_was_asked_for():
    """In a process of its own, by the environment that this run has."""
    wish = os.environ["PODWIRE_COMPILED"]
    code = "from podwire_nodeagent.datapath import COMPILED, stack; print(COMPILED, stack.__file__)"
    build, file = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert (build == "None", file.endswith(".py")) == {"off": (True, True), "require": (False, False)}[wish]
