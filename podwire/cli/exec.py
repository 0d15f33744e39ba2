"""exec (in a container) and node (on a node)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import Session, key, warn
from podwire.paths import ClusterError
from podwire_core.agentapi import ExecStart
from podwire_core.objects import Json

if TYPE_CHECKING:
    from podwire_core.rpc.sync import SyncChannel

stdin_option = click.option("-i", "--stdin", is_flag=True, help="Pass standard input on.")
tty_option = click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")


@click.command("exec")
@click.argument("words", nargs=-1, required=True, metavar="POD -- COMMAND...")
@click.option("--edge", is_flag=True, help="Outside the cluster, as a client behind its edge; without POD.")
@stdin_option
@tty_option
@click.option("-c", "--container", default="", help="Which container; default: the first.")
@namespace_option
@session_command
def exec_(
    session: Session, words: tuple[str, ...], edge: bool, stdin: bool, tty: bool, container: str, namespace: str | None
) -> int:
    """Run a command in a container, or outside the cluster (--edge); its exit status is the command's."""
    if edge:
        return _run(session.edge(), ExecStart(list(words), tty=wants_tty(tty), stdin=stdin, outside=True))
    pod, *command = words
    if not command:
        raise click.UsageError("Missing argument '-- COMMAND...'.", click.get_current_context())
    found = session.pod(pod, namespace)
    container = checked_container(found, container)
    agent = session.agent_of(found)
    return _run(agent, ExecStart(list(command), key(found), container, wants_tty(tty), stdin))


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, metavar="-- COMMAND...")
@stdin_option
@tty_option
@session_command
def node(session: Session, name: str, command: tuple[str, ...], stdin: bool, tty: bool) -> int:
    """Run a command on a node, in its network and with its tools (ip, iptables-save, conntrack, bridge … show the node's kernel).
    Without a command: a shell."""
    agent = session.agent(name.removeprefix("node/"))
    if not command:
        return _run(agent, ExecStart(["sh"], tty=wants_tty(sys.stdin.isatty()), stdin=True))
    return _run(agent, ExecStart(list(command), tty=wants_tty(tty), stdin=stdin))


def _run(agent: SyncChannel, start: ExecStart) -> int:
    from podwire.cli import terminal

    if start.tty:
        start.env = {"TERM": os.environ.get("TERM", "xterm")}
    done = terminal.run(agent, start)
    if done.message:
        click.echo(f"podwire: {done.message}", err=True)
    return done.code


def wants_tty(asked: bool) -> bool:
    """-t without a terminal here would only garble what a script reads."""
    if asked and not sys.stdin.isatty():
        warn("-t is ignored: standard input is not a terminal")
        return False
    return asked


def checked_container(pod: Json, name: str) -> str:
    """The container that was named, or the first. Raises ClusterError."""
    spec = pod.get("spec", {})
    names = [each["name"] for each in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]]
    if name and name not in names:
        raise ClusterError(f"pod {key(pod)} has no container {name!r}; it has: {', '.join(names)}")
    return name or (names[0] if names else "")
