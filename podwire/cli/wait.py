"""wait: for a condition, a field's value, or the end of objects."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import click

from podwire.cli import formats
from podwire.cli.get import fetch, parse_what, refs_of
from podwire.cli.options import namespace_option, session_command
from podwire.cli.session import Ref, Session
from podwire.paths import ClusterError
from podwire_core.errors import ApiError
from podwire_core.objects import Json

POLL = 0.1
UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}
Goal = Callable[[Json | None], bool]  # None: the object is gone


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND NAME... | KIND/NAME... | KIND --all")
@click.option("--for", "goal", required=True, help="condition=Ready[=false], delete, create, jsonpath='{.status.phase}'=Running")
@click.option("--timeout", default="30s", show_default=True, help="How long: 30s, 2m; 0: look once.")
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Those with these labels.")
@click.option("--all", "everything", is_flag=True, help="All of this kind.")
@session_command
def wait(
    session: Session,
    what: tuple[str, ...],
    goal: str,
    timeout: str,
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    everything: bool,
) -> None:
    """Wait for a condition of objects. Exit status 1 when the time is over."""
    reached, end = parse_goal(goal), time.monotonic() + seconds(timeout)
    queries = parse_what(session, what)
    refs = [session.make_ref(query.info, name, namespace) for query in queries for name in query.names]
    if not refs:
        if not (selector or everything):
            raise click.UsageError("name objects, or choose them with -l LABELS or --all")
        space = "" if all_namespaces else namespace or "default"
        refs = refs_of(session, [fetch(session, query, space, selector, "") for query in queries])
        if not refs and goal != "delete":
            raise ClusterError("no matching resources found")
    for ref in refs:
        _wait_for(session, ref, reached, end, must_exist=goal not in ("delete", "create"))
        click.echo(f"{session.resource(ref.kind).singular}/{ref.name} condition met")


def _wait_for(session: Session, ref: Ref, reached: Goal, end: float, must_exist: bool) -> None:
    while True:
        try:
            obj: Json | None = session.api.get(ref.kind, ref.name, ref.namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            obj = None
        if obj is None and must_exist:
            session.get(ref)  # says it with the namespace in which it is
        if reached(obj):
            return
        if time.monotonic() >= end:
            raise ClusterError(f"timed out waiting for the condition on {ref.plural}/{ref.name}")
        time.sleep(POLL)


def parse_goal(text: str) -> Goal:
    """Raises click.UsageError."""
    if text == "delete":
        return lambda obj: obj is None
    if text == "create":
        return lambda obj: obj is not None
    kind, _, rest = text.partition("=")
    if kind == "condition" and rest:
        name, _, status = rest.partition("=")
        return lambda obj: obj is not None and _status_of(obj, name).lower() == (status or "true").lower()
    if kind == "jsonpath" and rest:
        return _field_goal(rest)
    raise click.UsageError(f"--for: {text!r} is none of condition=NAME[=VALUE], delete, create, jsonpath={{PATH}}[=VALUE]")


def _status_of(obj: Json, name: str) -> str:
    conditions = obj.get("status", {}).get("conditions") or []
    wanted = next((str(each.get("type")) for each in conditions if str(each.get("type")).lower() == name.lower()), name)
    return str(formats.condition(obj, wanted).get("status", ""))


def _field_goal(text: str) -> Goal:
    from podwire.cli import jsonpath

    found = re.fullmatch(r"'?\"?(\{.*\}|[^=]*)'?\"?(?:=(.*))?", text, re.DOTALL)
    if found is None:
        raise click.UsageError(f"--for: cannot read jsonpath={text!r}")
    template, value = found[1], found[2]
    jsonpath.parse(template)

    def reached(obj: Json | None) -> bool:
        shown = "" if obj is None else jsonpath.render(template, obj)
        return bool(shown) if value is None else shown == value

    return reached


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if found is None:
        raise click.UsageError(f"--timeout: {text!r} is not a time; 30s and 2m are")
    return float(found[1]) * UNITS[found[2] or ""]
