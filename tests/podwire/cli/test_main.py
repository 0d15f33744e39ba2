"""What becomes of errors, and that starting up imports little."""

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from podwire.cli import main
from podwire.paths import ClusterError
from podwire_core.errors import ApiError, Cause


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """`podwire fail` raises what is put into the list."""
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
    monkeypatch.delenv("PODWIRE_DEBUG", raising=False)
    errors = []

    @click.command()
    def fail():
        raise errors[0]

    monkeypatch.setattr(main.Commands, "get_command", lambda self, ctx, name: fail)
    return errors


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ClusterError("no disk"), 1, "podwire: no disk\n"),
        (ClusterError("no disk", 2, "log\nof it"), 2, "podwire: no disk\nlog\nof it\n"),
        (ApiError(404, "gone"), 1, "podwire: gone\n"),
        (
            ApiError(422, "wrong", causes=[Cause("$.a", "is b"), Cause("$.c", "is d")]),
            2,
            "podwire: $.a: is b\npodwire: $.c: is d\n",
        ),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_expected_failures_are_lines(failing, capsys, error, code, text):
    failing.append(error)
    assert main.run(["fail"]) == code
    if text is not None:
        assert capsys.readouterr().err == text


def test_a_bug_is_one_line_and_a_file(failing, capsys, tmp_path):
    failing.append(RuntimeError("two\nlines"))
    assert main.run(["fail"]) == 1
    assert capsys.readouterr().err == f"podwire: this is a bug: RuntimeError: two lines (traceback in {tmp_path}/errors.log)\n"
    assert "Traceback" in (tmp_path / "errors.log").read_text()


def test_a_bug_with_debug_is_a_traceback(failing, capsys, monkeypatch):
    monkeypatch.setenv("PODWIRE_DEBUG", "1")
    failing.append(RuntimeError("x"))
    assert main.run(["fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_unknown_commands_and_options(capsys):
    assert main.run(["gte"]) == 2
    assert main.run(["get", "--fly"]) == 2
    assert main.run(["get"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "podwire: there is no command 'gte'; is it 'get'?"
    assert lines[2] == "podwire get: Missing argument 'KIND[,KIND] [NAME...] | KIND/NAME...'."


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_is_there_and_explains_itself(name, capsys):
    assert main.run([name, "--help"]) == 0
    assert "Usage: podwire" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in main.COMMANDS)


def test_the_command_starts_without_what_is_slow(tmp_path):
    """trio, numpy, rich and yaml take longer than the rest of `get pods` together."""
    code = (
        "import sys; from podwire.cli.main import run; run(['get', 'pods']); print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    slow = ["trio", "numpy", "rich", "yaml", "podwire_nodeagent", "podwire_apiserver"]
    environ = {**os.environ, "PODWIRE_API": f"unix:{tmp_path}/nobody.sock"}
    done = subprocess.run([sys.executable, "-c", code, *slow], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == "[]"
    assert "cannot reach" in done.stderr


class TestWhichClusterIsStopped:
    """`down` stops the cluster that was named, however it was named, and never another."""

    @pytest.fixture
    def stopped(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
        monkeypatch.delenv("PODWIRE_CLUSTER", raising=False)
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "cluster.json").write_text("{}")
        names = []
        monkeypatch.setattr("podwire.cluster.down", lambda name: names.append(name) or True)
        return names

    @pytest.mark.parametrize(
        "argv", [["--cluster", "named", "down"], ["down", "--name", "named"], ["down", "--cluster", "named"]]
    )
    def test_by_option(self, stopped, argv):
        CliRunner().invoke(main.podwire, argv, catch_exceptions=False)
        assert stopped == ["named"]

    def test_by_environment(self, stopped, monkeypatch):
        monkeypatch.setenv("PODWIRE_CLUSTER", "named")
        CliRunner().invoke(main.podwire, ["down"], catch_exceptions=False)
        assert stopped == ["named"]

    def test_the_only_one(self, stopped):
        CliRunner().invoke(main.podwire, ["down"], catch_exceptions=False)
        assert stopped == ["only"]
