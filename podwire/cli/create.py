"""create job --from=cronjob/NAME: a CronJob's Job now, whatever its schedule says. Everything else is created with `apply`."""

from __future__ import annotations

import copy

import click

from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import Session
from podwire.paths import ClusterError
from podwire_core.objects import Json


@click.group()
def create() -> None:
    """Start a Job from a CronJob (other objects: `podwire apply`)."""


@create.command()
@click.argument("name")
@click.option("--from", "source", required=True, metavar="cronjob/NAME", help="Whose Job it is.")
@namespace_option
@session_command
def job(session: Session, name: str, source: str, namespace: str | None) -> None:
    """Make a Job of a CronJob's template."""
    ref = session.ref(source, namespace, "CronJob")
    if ref.kind != "CronJob":
        raise ClusterError(f"--from takes cronjob/NAME, {source!r} is one of {ref.plural}", 2)
    session.api.create(manual_job(session.get(ref), name))
    click.echo(f"job.batch/{name} created")


def manual_job(owner: Json, name: str) -> Json:
    """The Job as kubectl makes it: owned by the CronJob, annotated as started by hand."""
    template = copy.deepcopy(owner["spec"]["jobTemplate"])
    given, meta = template.get("metadata") or {}, owner["metadata"]
    metadata = {
        "name": name,
        "namespace": meta["namespace"],
        "labels": given.get("labels") or {},
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual", **(given.get("annotations") or {})},
        "ownerReferences": [
            {"apiVersion": owner["apiVersion"], "kind": "CronJob", "name": meta["name"], "uid": meta["uid"], "controller": True}
        ],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}
