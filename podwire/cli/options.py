"""Options that many commands share, and how data is printed with -o."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from podwire.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])


def _set_cluster(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).cluster = value


def cluster_option(command: F) -> F:
    """--cluster, accepted before and after the command's name."""
    return click.option(
        "--cluster",
        metavar="NAME",
        expose_value=False,
        is_eager=True,
        callback=_set_cluster,
        help="Which cluster (or PODWIRE_CLUSTER).",
    )(command)


def session_command(command: F) -> F:
    """A command that talks to a cluster: gets a Session as first argument."""
    return cluster_option(click.make_pass_decorator(Session, ensure=True)(command))  # type: ignore[return-value]


def namespace_option(command: F) -> F:
    return click.option("-n", "--namespace", metavar="NS", help="Namespace; default: default.")(command)


def output_option(*formats: str) -> Callable[[F], F]:
    """-o json everywhere; other formats where they make sense."""
    return click.option("-o", "--output", type=click.Choice(["json", *formats]), help="Print data instead of text.")


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    """Bytes, Structs and the like, as msgspec writes them."""
    import msgspec

    return msgspec.to_builtins(value)


def print_yaml(data: Any) -> None:
    import yaml

    click.echo(yaml.safe_dump(data, sort_keys=False, default_flow_style=False, width=10_000), nl=False)
