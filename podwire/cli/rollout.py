"""scale and rollout (status, restart): what is needed of them to work with manifests of others."""

from __future__ import annotations

import datetime
import time

import click

from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import Session
from podwire.cli.wait import seconds
from podwire.paths import ClusterError
from podwire_core.objects import Json

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
POLL = 0.1


@click.command()
@click.argument("workload")
@click.option("--replicas", type=click.IntRange(0), required=True)
@namespace_option
@session_command
def scale(session: Session, workload: str, replicas: int, namespace: str | None) -> None:
    """Set the number of replicas of a workload (deploy/web; without a kind: a Deployment)."""
    ref = session.ref(workload, namespace, "Deployment")
    session.get(ref)
    session.api.patch(ref.kind, ref.name, ref.namespace, {"spec": {"replicas": replicas}})
    click.echo(f"{session.resource(ref.kind).singular}{'.' + ref.group if ref.group else ''}/{ref.name} scaled")


@click.group()
def rollout() -> None:
    """Follow or restart a workload's rollout."""


@rollout.command()
@click.argument("workload")
@click.option("--timeout", default="5m", show_default=True)
@namespace_option
@session_command
def status(session: Session, workload: str, timeout: str, namespace: str | None) -> None:
    """Wait until all replicas are of the newest version and available."""
    ref = session.ref(workload, namespace, "Deployment")
    end, said = time.monotonic() + seconds(timeout), ""
    while True:
        missing = unfinished(session.get(ref))
        if not missing:
            click.echo(f'{session.resource(ref.kind).singular} "{ref.name}" successfully rolled out')
            return
        if missing != said:
            click.echo(f'Waiting for {session.resource(ref.kind).singular} "{ref.name}" rollout to finish: {missing}...')
            said = missing
        if time.monotonic() > end:
            raise ClusterError(f"timed out waiting for the rollout of {ref.name}: {missing}")
        time.sleep(POLL)


def unfinished(obj: Json) -> str:
    """What a rollout waits for, in kubectl's words; "" when it is complete."""
    state = obj.get("status", {})
    if state.get("observedGeneration", 0) < obj["metadata"].get("generation", 0):
        return "the new spec has not been observed yet"
    if obj["kind"] == "DaemonSet":
        wanted, updated = state.get("desiredNumberScheduled", 0), state.get("updatedNumberScheduled", 0)
        available, total = state.get("numberAvailable", 0), state.get("desiredNumberScheduled", 0)
    else:
        wanted, updated = obj["spec"].get("replicas", 1), state.get("updatedReplicas", 0)
        available, total = state.get("availableReplicas", state.get("readyReplicas", 0)), state.get("replicas", 0)
    if updated < wanted:
        return f"{updated} out of {wanted} new replicas have been updated"
    if total > updated:
        return f"{total - updated} old replicas are pending termination"
    if available < wanted:
        return f"{available} of {wanted} updated replicas are available"
    return ""


@rollout.command()
@click.argument("workload")
@namespace_option
@session_command
def restart(session: Session, workload: str, namespace: str | None) -> None:
    """Replace all pods of a workload, by its own update strategy."""
    ref = session.ref(workload, namespace, "Deployment")
    session.get(ref)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    patch = {"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}}
    session.api.patch(ref.kind, ref.name, ref.namespace, patch)
    click.echo(f"{session.resource(ref.kind).singular}{'.' + ref.group if ref.group else ''}/{ref.name} restarted")
