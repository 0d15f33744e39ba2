"""delete."""

from __future__ import annotations

import time

import click

from podwire.cli.apply import kubectl_name, read_all
from podwire.cli.get import fetch, parse_what, refs_of
from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import NotFound, Ref, Session
from podwire.cli.wait import seconds
from podwire.paths import ClusterError
from podwire_core.errors import ApiError
from podwire_core.objects import Json

POLL = 0.05


@click.command()
@click.argument("what", nargs=-1, metavar="[KIND NAME... | KIND/NAME...]")
@click.option("-f", "--filename", "files", multiple=True, metavar="FILE|DIR|-", help="What these manifests describe.")
@click.option("-R", "--recursive", is_flag=True, help="Directories with all below them.")
@namespace_option
@click.option("-l", "--selector", default="", metavar="LABELS", help="Those with these labels.")
@click.option("--all", "everything", is_flag=True, help="All of this kind in the namespace.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there is fine.")
@click.option("--grace-period", type=int, help="Seconds a pod has to end; 0: none.")
@click.option("--force", is_flag=True, help="The same as --grace-period 0.")
@click.option(
    "--cascade", type=click.Choice(["background", "foreground", "orphan"]), default="background", help="What of dependents."
)
@click.option("--wait/--no-wait", default=True, help="Wait until they are gone (default).")
@click.option("--timeout", default="2m", show_default=True, help="How long to wait: 30s, 2m.")
@session_command
def delete(
    session: Session,
    what: tuple[str, ...],
    files: tuple[str, ...],
    recursive: bool,
    namespace: str | None,
    selector: str,
    everything: bool,
    ignore_not_found: bool,
    grace_period: int | None,
    force: bool,
    cascade: str,
    wait: bool,
    timeout: str,
) -> None:
    """Delete objects."""
    patience = seconds(timeout)
    if bool(what) == bool(files):
        raise click.UsageError("name objects, or give -f with manifests")
    refs = _of_files(session, files, recursive, namespace) if files else _named(session, what, namespace, selector, everything)
    grace = 0 if force else grace_period
    deleted, missing = [], []
    for ref in refs:
        try:
            done = session.api.delete(ref.kind, ref.name, ref.namespace, grace=grace, propagation=cascade.capitalize())
        except ApiError as error:
            if error.code != 404:
                raise
            missing.append(error.message)
            continue
        group = f".{ref.group}" if ref.group else ""
        click.echo(
            f'{ref.plural}{group} "{ref.name}" deleted'
            if not files or "kind" not in done
            else f"{kubectl_name(session, done)} deleted"
        )
        deleted.append((ref, done))
    if wait:
        _wait_until_gone(session, deleted, patience)
    if missing and not ignore_not_found:
        raise NotFound("\npodwire: ".join(missing))


def _of_files(session: Session, files: tuple[str, ...], recursive: bool, namespace: str | None) -> list[Ref]:
    """In reverse order, so that what was made first (namespaces) goes last."""
    refs = []
    for each in reversed(read_all(files, recursive)):
        kind, version = each.object.get("kind", ""), each.object.get("apiVersion", "")
        info = session.resource(f"{kind}.{version.rpartition('/')[0]}".rstrip("."))
        meta = each.object.get("metadata") or {}
        if not meta.get("name"):
            raise ClusterError(f"{each.where}: $.metadata.name: is missing", 2)
        refs.append(session.make_ref(info, meta["name"], meta.get("namespace") or namespace))
    return refs


def _named(session: Session, what: tuple[str, ...], namespace: str | None, selector: str, everything: bool) -> list[Ref]:
    queries = parse_what(session, what)
    named = [session.make_ref(query.info, name, namespace) for query in queries for name in query.names]
    if named:
        if selector or everything:
            raise click.UsageError("names cannot be combined with -l or --all")
        return named
    if not selector and not everything:
        raise click.UsageError("name objects, or choose them with -l LABELS or --all")
    return refs_of(session, [fetch(session, query, namespace or "default", selector, "") for query in queries])


def _wait_until_gone(session: Session, deleted: list[tuple[Ref, Json]], timeout: float) -> None:
    end = time.monotonic() + timeout
    left = list(deleted)
    while True:
        left = [(ref, obj) for ref, obj in left if _still_there(session, ref, obj)]
        if not left:
            return
        if time.monotonic() > end:
            names = ", ".join(f"{ref.plural}/{ref.name}" for ref, _ in left)
            raise ClusterError(f"timed out waiting for the end of {names} (finalizers? `podwire get … -o yaml`)")
        time.sleep(POLL)


def _still_there(session: Session, ref: Ref, obj: Json) -> bool:
    """The same object: one that was made again under its name is another."""
    try:
        found = session.api.get(ref.kind, ref.name, ref.namespace)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    uid = obj.get("metadata", {}).get("uid")
    return not uid or found["metadata"].get("uid") == uid
