"""The command `podwire`: which subcommands there are, and what becomes of errors.

Rules: a subcommand's module is imported when it is used (starting up is most of the time of a short command); an expected
failure prints one line, `podwire: …`, on stderr; exit status 0, 1 (the answer is no, something failed), 2 (bad usage or bad
input). A bug prints one line too, and the traceback goes to a file, or to the terminal with PODWIRE_DEBUG=1.
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import NamedTuple

import click

from podwire.cli.options import cluster_option
from podwire.paths import ClusterError
from podwire_core.errors import ApiError


class Entry(NamedTuple):
    """Where a command is: `module:function` below podwire.cli, and its line in --help (so that help imports nothing)."""

    target: str
    help: str
    section: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("lifecycle:up", "Start a cluster.", "Clusters"),
    "down": Entry("lifecycle:down", "Stop a cluster and remove all of it.", "Clusters"),
    "status": Entry("lifecycle:status", "Show the clusters of this machine and their processes.", "Clusters"),
    "apply": Entry("apply:apply", "Create or change objects from manifests, all or nothing.", "Objects"),
    "create": Entry("create:create", "Start a Job from a CronJob.", "Objects"),
    "get": Entry("get:get", "List objects.", "Objects"),
    "describe": Entry("describe:describe", "Show an object in detail, with its events.", "Objects"),
    "delete": Entry("delete:delete", "Delete objects.", "Objects"),
    "wait": Entry("wait:wait", "Wait for a condition of objects.", "Objects"),
    "scale": Entry("rollout:scale", "Set the number of replicas of a workload.", "Objects"),
    "rollout": Entry("rollout:rollout", "Follow, restart, undo or hold a workload's rollout.", "Objects"),
    "api-resources": Entry("get:api_resources", "List the kinds of objects.", "Objects"),
    "logs": Entry("logs:logs", "Print a container's output.", "Pods and nodes"),
    "exec": Entry("exec:exec_", "Run a command in a container.", "Pods and nodes"),
    "node": Entry("exec:node", "Run a command on a node, in its network and with its tools.", "Pods and nodes"),
    "trace": Entry("trace:trace", "Follow a request's packets through the cluster, hop by hop.", "Network"),
    "flows": Entry("flows:flows", "List connections as the nodes' conntrack tables see them, joined.", "Network"),
    "check": Entry("check:check", "Say what would become of flows, without a cluster.", "Network"),
    "bootstrap": Entry("lifecycle:bootstrap", "Complete a cluster that was started by other means.", "Clusters"),
    "version": Entry("lifecycle:version", "Print versions.", "Clusters"),
}


class Commands(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command = getattr(importlib.import_module(f"podwire.cli.{module}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.target} is not a command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"there is no command {args[0]!r}" + (f"; is it {near[0]!r}?" if near else " (--help lists them)"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@cluster_option
def podwire() -> None:
    """A Kubernetes cluster's network on this machine: real processes, real packets, and every decision explained."""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """The command with these arguments; its exit status."""
    try:
        result = podwire.main(argv, prog_name="podwire", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "podwire"
        return _fail(f"{where}: {error.format_message()}", 2)
    except click.ClickException as error:
        return _fail(f"podwire: {error.format_message()}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ClusterError as error:
        return _fail("\n".join(filter(None, [f"podwire: {error}", error.details])), error.code)
    except ApiError as error:
        return _fail(describe_api_error(error), 2 if error.code in (400, 413, 422) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `podwire … | head`: what is still buffered has no reader
        return 141
    except Exception as error:
        return _bug(error)


def _fail(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code


def describe_api_error(error: ApiError) -> str:
    """One line, or one for each wrong field."""
    if not error.causes:
        return f"podwire: {error.message}"
    if len(error.causes) == 1 and error.causes[0].message in error.message:
        return f"podwire: {error.message}"
    return "\n".join(f"podwire: {cause.field}: {cause.message}" for cause in error.causes)


def _bug(error: Exception) -> int:
    import traceback

    text = "".join(traceback.format_exception(error))
    if os.environ.get("PODWIRE_DEBUG"):
        return _fail(text, 1)
    what = f"podwire: this is a bug: {type(error).__name__}: {' '.join(str(error).split())}"
    from podwire.paths import home

    log = home() / "errors.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"podwire {' '.join(sys.argv[1:])}\n{text}\n")
    except OSError:
        return _fail(f"{what} (PODWIRE_DEBUG=1 shows where)", 1)
    return _fail(f"{what} (traceback in {log})", 1)


if __name__ == "__main__":
    main()
