"""scale and rollout (status, restart, history, undo, pause, resume), as kubectl has them."""

from __future__ import annotations

import datetime
import time

import click

from podwire.cli.options import namespace_option, session_command
from podwire.cli.revisions import HOLDERS, Revision, history_of, restored, target_of
from podwire.cli.session import Ref, Session
from podwire.cli.wait import seconds
from podwire.paths import ClusterError
from podwire_core.errors import ApiError
from podwire_core.objects import Json

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
POLL = 0.1


def _say(session: Session, ref: Ref, what: str) -> None:
    click.echo(f"{session.resource(ref.kind).singular}{'.' + ref.group if ref.group else ''}/{ref.name} {what}")


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
    _say(session, ref, "scaled")


@click.group()
def rollout() -> None:
    """Follow, restart, undo or hold a workload's rollout."""


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
    _say(session, ref, "restarted")


# --- the templates it has had --------------------------------


@rollout.command()
@click.argument("workload")
@click.option("--revision", "number", type=click.IntRange(1), help="Show this revision's pod template.")
@namespace_option
@session_command
def history(session: Session, workload: str, number: int | None, namespace: str | None) -> None:
    """List the templates a workload has had, or show one."""
    ref = session.ref(workload, namespace, "Deployment")
    owner, revisions = _with_history(session, ref)
    title = f"{session.resource(ref.kind).singular}.{ref.group}/{ref.name}"
    if number is not None:
        from podwire.cli.describe import template_text

        click.echo(f"{title} with revision #{number}\n{template_text(target_of(owner, revisions, number).template)}")
        return
    from podwire.cli.formats import NONE, table

    click.echo(f"{title}\n{table(('REVISION', 'CHANGE-CAUSE'), [(str(each.number), each.cause or NONE) for each in revisions])}")


@rollout.command()
@click.argument("workload")
@click.option(
    "--to-revision", "number", type=click.IntRange(0), default=0, help="Which (`rollout history`); default: the one before."
)
@namespace_option
@session_command
def undo(session: Session, workload: str, number: int, namespace: str | None) -> None:
    """Put an earlier template back in force; it is rolled out like any other."""
    ref = session.ref(workload, namespace, "Deployment")
    while True:
        owner, revisions = _with_history(session, ref)
        if owner["spec"].get("paused"):
            raise ClusterError(f"cannot roll back a paused deployment; resume it first (`podwire rollout resume {ref.name}`)")
        target = target_of(owner, revisions, number)
        changed = restored(owner, target)
        if changed is None:
            _say(session, ref, f"skipped rollback (current template already matches revision {target.number})")
            return
        try:
            session.api.update(changed)
        except ApiError as error:
            if error.code != 409:  # else it changed meanwhile: look again
                raise
            continue
        _say(session, ref, "rolled back")
        return


def _with_history(session: Session, ref: Ref) -> tuple[Json, list[Revision]]:
    owner = session.get(ref)
    if owner["kind"] not in HOLDERS:
        raise ClusterError(f"{ref.plural} have no rollout history; {', '.join(HOLDERS)} have", 2)
    return owner, history_of(owner, session.api.list(HOLDERS[owner["kind"]], ref.namespace).items)


@rollout.command()
@click.argument("workload")
@namespace_option
@session_command
def pause(session: Session, workload: str, namespace: str | None) -> None:
    """Hold a Deployment's rollout: later changes of its template wait."""
    _hold(session, workload, namespace, True)


@rollout.command()
@click.argument("workload")
@namespace_option
@session_command
def resume(session: Session, workload: str, namespace: str | None) -> None:
    """Let a paused Deployment's rollout go on."""
    _hold(session, workload, namespace, False)


def _hold(session: Session, workload: str, namespace: str | None, paused: bool) -> None:
    ref = session.ref(workload, namespace, "Deployment")
    owner = session.get(ref)
    if owner["kind"] != "Deployment":
        raise ClusterError(f"{ref.plural} cannot be paused, Deployments can", 2)
    if bool(owner["spec"].get("paused")) == paused:
        word = "already paused" if paused else "not paused"
        raise ClusterError(f'deployments.apps "{ref.name}" is {word}')
    session.api.patch(ref.kind, ref.name, ref.namespace, {"spec": {"paused": paused or None}})
    _say(session, ref, "paused" if paused else "resumed")
