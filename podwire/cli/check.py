"""check: what would become of flows, answered without a cluster (the answers come from `podwire.check`)."""

from __future__ import annotations

from typing import Any

import click

from podwire.cli.apply import read_all
from podwire.cli.options import output_option, print_json
from podwire.paths import ClusterError
from podwire_core.objects import Json

YES = ("delivered", "forwarded")


@click.command()
@click.option(
    "-f", "--filename", "files", multiple=True, required=True, metavar="FILE|DIR|-", help="Manifests, or a dump of a cluster."
)
@click.option("-R", "--recursive", is_flag=True, help="Directories with all below them.")
@click.option("--flows", "flows_file", required=True, metavar="FILE", help="A list of flows, YAML or JSON.")
@click.option("--proxy", help="kube-proxy's mode; default: as a KubeProxyConfiguration among the objects says, or iptables.")
@click.option("--cni", help="The pod network.")
@output_option()
def check(
    files: tuple[str, ...], recursive: bool, flows_file: str, proxy: str | None, cni: str | None, output: str | None
) -> int:
    """Say what would become of flows, without a cluster.

    A flow is {id, from: {pod|node|ip}, to: {service|pod|node|ip}, port, protocol} and may say what is expected of it
    (`expect: dropped`). Exit status 1 if a flow's verdict is not the expected one; without `expect`, if it is not delivered or
    forwarded.
    """
    from podwire.check import check as run

    objects = [each.object for each in read_all(files, recursive)]
    flows = read_flows(flows_file)
    expected = [flow.pop("expect", None) for flow in flows]
    try:
        results = run(objects, flows, proxy=proxy, cni=cni)
    except ValueError as error:
        raise ClusterError(str(error), 2) from None
    if output == "json":
        print_json(results)
    else:
        click.echo(text_of(results, expected))
    for warning in dict.fromkeys(each for result in results for each in result.get("warnings") or ()):
        click.echo(f"warning: {warning}", err=True)
    return 0 if all(as_wanted(result, wanted) for result, wanted in zip(results, expected, strict=True)) else 1


def as_wanted(result: Json, wanted: str | None) -> bool:
    return result["verdict"] in YES if wanted is None else result["verdict"] == wanted


def read_flows(path: str) -> list[Json]:
    """Raises ClusterError (exit status 2)."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data: Any = yaml.safe_load(file)
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}", 2) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path}: {' '.join(str(error).split())}", 2) from None
    if isinstance(data, dict) and isinstance(data.get("flows"), list):
        data = data["flows"]
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise ClusterError(f"{path}: $: expected a list of flows", 2)
    return data


def text_of(results: list[Json], expected: list[str | None]) -> str:
    from podwire.cli.formats import table

    rows = []
    for result, wanted in zip(results, expected, strict=True):
        why = result.get("decided_by") or {}
        reached = [f"{d.get('pod') or d.get('ip')}:{d.get('port')}" for d in result.get("destinations") or []]
        rows.append(
            [
                "ok" if as_wanted(result, wanted) else "NO",
                str(result.get("id", "")),
                str(result["verdict"]),
                ", ".join(reached),
                str(result.get("source") or ""),
                " ".join(filter(None, (why.get("node"), why.get("stage"), why.get("object") or why.get("rule")))),
            ]
        )
    return table(["", "FLOW", "VERDICT", "DESTINATIONS", "SOURCE SEEN", "DECIDED BY"], rows)
