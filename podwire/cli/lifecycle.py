"""up, down, status, version."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from podwire import paths
from podwire.cli.options import output_option, print_json, session_command
from podwire.cli.session import Session
from podwire.paths import ClusterError, Config

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """One line a stage when it is done, with its time; on a terminal a spinner says what is under way."""

    def __init__(self) -> None:
        self.start = self.stage_start = time.monotonic()
        self.spinner: Status | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self.spinner = Status("starting", console=Console(stderr=True))
            self.spinner.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.spinner:
            self.spinner.stop()

    def __call__(self, stage: str, how_far: str) -> None:
        if how_far:
            if self.spinner:
                self.spinner.update(f"{stage} {how_far}")
            return
        now = time.monotonic()
        self.line(f"{stage} ready", now - self.stage_start)
        self.stage_start = now

    def line(self, text: str, seconds: float) -> None:
        if self.spinner:
            self.spinner.console.print(f"[green]✓[/] {text:<24} [dim]{seconds:5.1f} s[/]", highlight=False)
        else:
            click.echo(f"{text:<26} {seconds:5.1f} s", err=True)


@click.command()
@click.option(
    "--name", "--cluster", "name", help="The cluster's name (PODWIRE_CLUSTER, else podwire); several can run side by side."
)
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True, help="How many nodes.")
@click.option("--cni", default="flannel", show_default=True, help="The pod network.")
@click.option("--proxy", default="iptables", show_default=True, help="kube-proxy's mode.")
@click.option("--ip-family", type=click.Choice(list(paths.IP_FAMILIES)), default="ipv4", show_default=True, help="IP families.")
@click.option("--edge/--no-edge", default=True, show_default=True, help="A router and clients outside the cluster.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds until it gives up.")
def up(name: str | None, nodes: int, cni: str, proxy: str, ip_family: str, edge: bool, timeout: float) -> None:
    """Start a cluster and wait until DNS answers in it."""
    from podwire import cluster
    from podwire_nodeagent.proxy import modes

    _one_of("--cni", cni, cluster.CNIS)
    _one_of("--proxy", proxy, modes.MODES)
    name = name or _given() or paths.DEFAULT_NAME
    config = Config(name, nodes, cni, proxy, version=_version(), edge=edge, ip_family=ip_family)
    with Progress() as progress:
        cluster.up(config, progress, timeout)
        progress.line(f"cluster {name!r} is up", time.monotonic() - progress.start)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise click.UsageError(f"{option}: there is no {value!r}; there is: {', '.join(known)}", click.get_current_context())


@click.command()
@click.option("--name", "--cluster", "name", help="Which cluster; default: the one that a command without --cluster means.")
@click.option("--all", "everything", is_flag=True, help="All clusters of this user.")
def down(name: str | None, everything: bool) -> None:
    """Stop a cluster and remove all of it."""
    from podwire import cluster

    names = paths.clusters() if everything else [name or _default_to_stop()]
    for each in names:
        if not cluster.down(each):
            raise ClusterError(f"there is no cluster {each!r}")
        click.echo(f"cluster {each!r} stopped", err=True)


def _given() -> str:
    """The cluster named before the command (`podwire --cluster c1 down`) or by PODWIRE_CLUSTER, "" if none."""
    session = click.get_current_context().find_object(Session)
    return (session.cluster if session else None) or os.environ.get("PODWIRE_CLUSTER") or ""


def _default_to_stop() -> str:
    """As `paths.chosen`, but a crashed cluster can be meant too."""
    if given := _given():
        return given
    found = paths.clusters()
    if paths.DEFAULT_NAME in found or not found:
        return paths.DEFAULT_NAME
    return found[0] if len(found) == 1 else paths.chosen(None)


@click.command()
@click.option("--name", "--cluster", "name", help="Only this cluster.")
@output_option()
def status(name: str | None, output: str | None) -> None:
    """Show the clusters of this machine and their processes. Exit status 1 if one is not well, or none is there."""
    found = [_status_of(each) for each in paths.clusters() if name in (None, each)]
    if output == "json":
        print_json(found)
    elif not found:
        click.echo(f"no cluster {name!r}" if name else "no clusters: `podwire up` starts one")
    else:
        click.echo("\n\n".join(_status_text(each) for each in found))
    if not found or not all(each["state"] == "running" for each in found):
        raise click.exceptions.Exit(1)


def _status_of(name: str) -> dict[str, Any]:
    import msgspec

    from podwire import cluster, processes

    members = processes.of_cluster(name)
    services = cluster.read_services(name)
    down = [service.name for service in services if not service.pid]
    state = "crashed" if not members else f"degraded ({', '.join(down)} not running)" if down else "running"
    config = paths.read_config(name)
    return {
        "name": name,
        "state": state,
        "config": msgspec.to_builtins(config),
        "api": paths.api_address(name),
        "directory": str(paths.run_dir(name)),
        "services": [{"name": s.name, "restarts": s.restarts, "exit": s.exit, "log": s.log} for s in services],
        "processes": [msgspec.to_builtins(member) for member in members],
    }


def _status_text(found: dict[str, Any]) -> str:
    from podwire.cli.formats import duration, table

    config = found["config"]
    head = f"cluster {found['name']!r}: {found['state']}, {config['nodes']} nodes, {config['cni']}, kube-proxy {config['proxy']}"
    head += f", up {duration(time.time() - config['created'])}"
    shown = [p for p in found["processes"] if p["kind"] != "pod"]
    rows = [
        [p["kind"], p["node"], str(p["pid"]), f"{p['rss'] / 2**20:.0f} MB", f"{p['cpu']:.1f} s"]
        for p in sorted(shown, key=lambda p: (p["node"], p["kind"]))
    ]
    pods = len(found["processes"]) - len(shown)
    return "\n".join(
        [
            head,
            f"api: {found['api']}, logs: {found['directory']}/log",
            "",
            table(["PROCESS", "NODE", "PID", "RSS", "CPU"], rows),
            f"and {pods} processes in pods",
        ]
    )


@click.command()
@click.option("--nodes", type=click.IntRange(1, 64), required=True, help="How many nodes to wait for.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds until it gives up.")
@session_command
def bootstrap(session: Session, nodes: int, timeout: float) -> None:
    """Give a cluster that was started by other means (docker-compose) its kube-system, and wait until DNS answers in it."""
    from podwire import cluster

    end = time.monotonic() + timeout

    def poll(what: str) -> None:
        if time.monotonic() > end:
            raise ClusterError(f"gave up waiting for {what}")
        time.sleep(cluster.POLL)

    with Progress() as progress:
        cluster.wait_until_serving(session.api, poll, progress)
        cluster.settle(session.api, nodes, poll, progress)
        progress.line("the cluster is up", time.monotonic() - progress.start)


@click.command()
@output_option()
def version(output: str | None) -> None:
    """Print versions."""
    import platform

    found = {"podwire": _version(), "python": platform.python_version(), "kernel": platform.release()}
    if output == "json":
        print_json(found)
    else:
        click.echo(f"podwire {found['podwire']} (Python {found['python']}, Linux {found['kernel']})")


def _version() -> str:
    from importlib.metadata import version as installed

    return installed("podwire")
