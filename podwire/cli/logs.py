"""logs."""

from __future__ import annotations

import sys

import click

from podwire.cli.exec import checked_container
from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import Session, key
from podwire_core.agentapi import SERVICE, LogsChunk, LogsRequest


@click.command()
@click.argument("pod")
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes.")
@click.option("-c", "--container", default="", help="Which container; default: the first.")
@click.option("-p", "--previous", is_flag=True, help="Of the container's run before this one.")
@click.option("--tail", type=int, default=-1, help="Only the last lines.")
@click.option("--timestamps", is_flag=True, help="With the time of every line.")
@namespace_option
@session_command
def logs(
    session: Session, pod: str, follow: bool, container: str, previous: bool, tail: int, timestamps: bool, namespace: str | None
) -> None:
    """Print what a container has written (POD, or deploy/NAME: its first pod)."""
    found = session.pod(pod, namespace)
    container = checked_container(found, container)
    if len(found["spec"]["containers"]) > 1 and click.get_current_context().params["container"] == "":
        click.echo(f"Defaulted container {container!r} of {len(found['spec']['containers'])} (-c chooses)", err=True)
    request = LogsRequest(key(found), container, follow, previous, tail, timestamps)
    with session.agent_of(found).replies(SERVICE, "Logs", request, LogsChunk) as chunks:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk.data)
            sys.stdout.buffer.flush()
