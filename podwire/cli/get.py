"""get, api-resources.

Order to read: what to list (Query), how to print it, watching, api-resources.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from podwire.cli import printers
from podwire.cli.formats import NONE, table
from podwire.cli.formats import labels as label_text
from podwire.cli.options import namespace_option, output_option, print_json, print_yaml, session_command
from podwire.cli.session import Ref, Session
from podwire.paths import ClusterError
from podwire_core.errors import ApiError
from podwire_core.objects import Json

if TYPE_CHECKING:
    from podwire_core.rpc.messages import ResourceInfo

COLUMNS = "custom-columns="
ALL = (
    "pods",
    "services",
    "replicationcontrollers",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "cronjobs",
    "jobs",
)


class Query(Struct):
    """One kind to list, or some objects of it."""

    info: ResourceInfo
    kind: str  # as the API takes it
    names: list[str]
    custom: list[printers.Column] = []  # of a kind that a CustomResourceDefinition made


class Found(Struct):
    query: Query
    items: list[Json]
    revision: int = 0


class Shape(Struct):
    """How to print."""

    output: str | None
    namespaces: bool
    show_labels: bool
    titles: bool


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND[,KIND] [NAME...] | KIND/NAME...")
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only with these labels: a=b,c!=d,e in (f,g),h")
@click.option("--field-selector", default="", metavar="FIELDS", help="Only with these fields: spec.nodeName=node1")
@click.option("-w", "--watch", is_flag=True, help="Go on and print changes.")
@click.option("-o", "--output", metavar="FORMAT", help="wide, json, yaml, name, jsonpath='{…}', custom-columns=TITLE:PATH,…")
@click.option("--sort-by", metavar="PATH", help="By this field: .metadata.creationTimestamp")
@click.option("--show-labels", is_flag=True, help="Labels as the last column.")
@click.option("--no-headers", is_flag=True, help="No titles.")
@session_command
def get(
    session: Session,
    what: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    field_selector: str,
    watch: bool,
    output: str | None,
    sort_by: str | None,
    show_labels: bool,
    no_headers: bool,
) -> None:
    """List objects."""
    _check_output(output)
    queries = parse_what(session, what)
    if any(query.names for query in queries) and (all_namespaces or selector or field_selector):
        raise click.UsageError("names cannot be combined with -A, -l or --field-selector")
    space = "" if all_namespaces else (namespace or "default")
    found = [fetch(session, query, space, selector, field_selector) for query in queries]
    if sort_by is not None:
        from podwire.cli.jsonpath import sort_key

        for each in found:
            each.items.sort(key=sort_key(sort_by))
    if output in (None, "wide"):
        for query in queries:
            query.custom = _custom_columns(session, query.info)
    shape = Shape(output, all_namespaces, show_labels, not no_headers)
    show(found, shape, space)
    if watch:
        follow(session, found, shape, space, selector, field_selector)


def _check_output(output: str | None) -> None:
    if output not in (None, "wide", "json", "yaml", "name") and not output.startswith(("jsonpath=", COLUMNS)):
        known = "wide, json, yaml, name, jsonpath={…}, custom-columns=TITLE:PATH,…"
        raise click.UsageError(f"-o: there is no {output!r}; there is: {known}")


def parse_what(session: Session, what: tuple[str, ...]) -> list[Query]:
    """`pods`, `pods a b`, `pods,svc`, `pod/a svc/b`, `all`."""
    if "/" in what[0]:
        queries: dict[str, Query] = {}
        for word in what:
            kind, slash, name = word.partition("/")
            if not slash or not name:
                raise ClusterError(f"{word!r}: every argument is to be KIND/NAME when the first is", 2)
            query = _query(session, kind)
            queries.setdefault(query.kind, query).names.append(name)
        return list(queries.values())
    kinds = ALL if what[0] == "all" else what[0].split(",")
    queries_ = [_query(session, kind) for kind in kinds]
    for query in queries_:
        query.names.extend(what[1:])
    return queries_


def _query(session: Session, word: str) -> Query:
    info = session.resource(word)
    return Query(info, session.api_kind(info), [])


def _custom_columns(session: Session, info: ResourceInfo) -> list[printers.Column]:
    if "." not in info.group or info.group.endswith(".k8s.io"):
        return []  # built in
    try:
        definition = session.api.get("CustomResourceDefinition", f"{info.plural}.{info.group}", "")
    except ApiError:
        return []
    return printers.custom_columns(definition, info.version)


def fetch(session: Session, query: Query, space: str, selector: str, fields: str) -> Found:
    if query.names:
        refs = [session.make_ref(query.info, name, space) for name in query.names]
        return Found(query, [session.get(ref) for ref in refs])
    listing = session.api.list(query.kind, space if query.info.namespaced else "", selector, fields)
    return Found(query, printers.in_order(query.info.kind, listing.items), listing.revision)


# --- printing --------------------------------


def show(found: list[Found], shape: Shape, space: str) -> None:
    items = [item for each in found for item in each.items]
    output = shape.output or ""
    if output in ("json", "yaml"):
        one = len(items) == 1 and len(found) == 1 and bool(found[0].query.names)
        data = items[0] if one else {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
        (print_json if output == "json" else print_yaml)(data)
    elif output == "name":
        for each in found:
            for item in each.items:
                click.echo(f"{prefix_of(each.query.info)}{item['metadata']['name']}")
    elif output.startswith("jsonpath="):
        from podwire.cli.jsonpath import render

        one = len(items) == 1 and bool(found[0].query.names)
        click.echo(render(output.removeprefix("jsonpath="), items[0] if one else {"kind": "List", "items": items}), nl=False)
    elif output.startswith(COLUMNS):
        from podwire.cli.jsonpath import columns, render

        wanted = columns(output.removeprefix(COLUMNS))
        rows = [[render(template, item) or NONE for _, template in wanted] for item in items]
        click.echo(table([title for title, _ in wanted], rows, shape.titles))
    elif not items:
        where = f" in {space} namespace" if space and any(each.query.info.namespaced for each in found) else ""
        click.echo(f"No resources found{where}.", err=True)
    else:
        several = len(found) > 1
        texts = [_text(each, shape, prefix_of(each.query.info) if several else "") for each in found if each.items]
        click.echo("\n\n".join(texts))


def prefix_of(info: ResourceInfo) -> str:
    return f"{info.singular.lower()}{'.' + info.group if info.group else ''}/"


def _text(found: Found, shape: Shape, prefix: str) -> str:
    namespaces = shape.namespaces and found.query.info.namespaced
    wide = shape.output == "wide"
    header, rows = printers.rows_of(
        found.query.info.kind,
        found.items,
        time.time(),
        wide=wide,
        namespaces=namespaces,
        prefix=prefix,
        custom=found.query.custom,
    )
    if shape.show_labels:
        header.append("LABELS")
        for row, item in zip(rows, found.items, strict=True):
            row.append(label_text(item["metadata"].get("labels")))
    return table(header, rows, shape.titles)


def follow(session: Session, found: list[Found], shape: Shape, space: str, selector: str, fields: str) -> None:
    """Every change as one more line (or one more object), until interrupted."""
    from podwire_core.rpc.messages import Selection

    if any(each.query.names for each in found):
        if len(found) > 1 or len(found[0].items) > 1:
            raise click.UsageError("-w follows one object, or one or more kinds")
        fields = f"metadata.name={found[0].query.names[0]}"
    by_kind = {each.query.kind: each for each in found}
    spaces = {each.query.kind: space if each.query.info.namespaced else "" for each in found}
    selections = [
        Selection(kind, spaces[kind], selector, fields, each.revision or _revision(each.items)) for kind, each in by_kind.items()
    ]
    later = Shape(shape.output, shape.namespaces, shape.show_labels, False)
    for batch in session.api.watch(selections):
        for event in batch:
            if event.object and event.type != "BOOKMARK":
                show([Found(by_kind[event.kind].query, [event.object])], later, space)


def _revision(items: list[Json]) -> int:
    return max((int(item["metadata"].get("resourceVersion") or 0) for item in items), default=0)


@click.command("api-resources")
@output_option()
@session_command
def api_resources(session: Session, output: str | None) -> None:
    """List the kinds of objects, and which of them podwire acts on (the others are only stored)."""
    infos = sorted(session.resources, key=lambda info: (info.group, info.plural))
    if output == "json":
        print_json(infos)
        return
    rows = [
        [
            info.plural,
            ",".join(info.short_names),
            info.api_version,
            str(info.namespaced).lower(),
            info.kind,
            "" if info.acted_on else "no",
        ]
        for info in infos
    ]
    click.echo(table(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND", "ACTED ON"], rows))


def refs_of(session: Session, found: list[Found]) -> list[Ref]:
    """The objects of a listing, as references."""
    return [
        session.make_ref(each.query.info, item["metadata"]["name"], item["metadata"].get("namespace"))
        for each in found
        for item in each.items
    ]
