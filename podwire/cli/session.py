"""What a command works with: the chosen cluster's API server, its agents, and the names that users write.

A name is `web`, `ns/web`, or with its kind in front `pod/web`, `deploy/web` (`deploy/ns/web` too); kinds are known by kind,
plural, singular and short names, with or without ".group". Connections are made when first used, so that `--help` is instant.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from podwire import paths
from podwire.paths import ClusterError
from podwire_core.agentapi import AGENT_ADDRESS
from podwire_core.errors import ApiError
from podwire_core.objects import Json

if TYPE_CHECKING:
    from podwire_core.rpc.messages import ResourceInfo
    from podwire_core.rpc.sync import SyncChannel, SyncClient


EDGE = "edge"


class Ref(Struct, frozen=True):
    """An object that the user named. `kind` is as the API takes it: "Pod", "Thing.group" where it could be taken for another."""

    kind: str
    name: str
    namespace: str = ""
    plural: str = ""
    group: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class NotFound(ClusterError):
    """What the user named is not there."""


def warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)


class Session:
    """One run of the command. `cluster` is what --cluster said."""

    def __init__(self, cluster: str | None = None) -> None:
        self.cluster = cluster

    @cached_property
    def api(self) -> SyncClient:
        from podwire_core.rpc.sync import SyncClient

        address = os.environ.get("PODWIRE_API") if self.cluster is None else None
        return SyncClient(address or paths.api_address(paths.chosen(self.cluster)), on_warning=warn)

    @cached_property
    def resources(self) -> list[ResourceInfo]:
        return self.api.resources()

    def resource(self, word: str) -> ResourceInfo:
        """The kind that `po`, `pods`, `deployments.apps` … means. Raises ClusterError (exit status 2)."""
        found = self.find_resource(word)
        if found is None:
            raise ClusterError(f"there is no kind {word!r} (`podwire api-resources` lists them)", 2)
        return found

    def find_resource(self, word: str) -> ResourceInfo | None:
        name, _, group = word.lower().partition(".")
        for info in self.resources:
            names = (info.plural.lower(), info.singular.lower(), info.kind.lower(), *info.short_names)
            if name in names and (not group or group == info.group or group == f"{info.version}.{info.group}"):
                return info
        return None

    def api_kind(self, info: ResourceInfo) -> str:
        """Qualified by its group if two kinds share the name."""
        same = [other for other in self.resources if other.kind == info.kind]
        return f"{info.kind}.{info.group}" if len(same) > 1 and info.group else info.kind

    def ref(self, text: str, namespace: str | None, default: str = "Pod") -> Ref:
        """What `text` names; without a kind in it, one of kind `default`."""
        parts = text.split("/")
        info = None
        if len(parts) > 1:
            info = self.find_resource(parts[0])
            parts = parts[1:] if info else parts
        if len(parts) > 2 or not all(parts):
            raise ClusterError(f"{text!r} is not a name: NAME, NAMESPACE/NAME or KIND/NAME is", 2)
        info = info or self.resource(default)
        space = parts[0] if len(parts) == 2 else (namespace or "default")
        return self.make_ref(info, parts[-1], space)

    def make_ref(self, info: ResourceInfo, name: str, namespace: str | None) -> Ref:
        space = (namespace or "default") if info.namespaced else ""
        return Ref(self.api_kind(info), name, space, info.plural, info.group)

    def get(self, ref: Ref) -> Json:
        """Raises NotFound, as kubectl says it."""
        try:
            return self.api.get(ref.kind, ref.name, ref.namespace)
        except ApiError as error:
            if error.code == 404:
                group = f".{ref.group}" if ref.group else ""
                raise NotFound(f'{ref.plural}{group} "{ref.name}" not found' + self._elsewhere(ref)) from None
            raise

    def _elsewhere(self, ref: Ref) -> str:
        """The likeliest mistake is the namespace."""
        if not ref.namespace:
            return ""
        others = [o for o in self.api.list(ref.kind, fields=f"metadata.name={ref.name}").items if _name(o) == ref.name]
        spaces = ", ".join(sorted(o["metadata"]["namespace"] for o in others))
        return f" in namespace {ref.namespace}" + (f" (there is one in {spaces}: -n)" if spaces else "")

    # --- pods and nodes ---

    def pod(self, text: str, namespace: str | None) -> Json:
        """The Pod of `client`, `pod/client`, or the first ready one of `deploy/web`, `svc/web`."""
        ref = self.ref(text, namespace)
        obj = self.get(ref)
        if ref.kind == "Pod":
            return obj
        pods = self.pods_of(obj)
        if not pods:
            raise NotFound(f"{ref.plural}/{ref.name} in namespace {ref.namespace} has no pods")
        return pods[0]

    def pods_of(self, owner: Json) -> list[Json]:
        """The pods that a workload or Service selects, ready ones first."""
        from podwire.cli.formats import condition, selector
        from podwire.cli.formats import labels as label_text

        spec = owner.get("spec", {})
        found = spec.get("selector")
        if not found and owner.get("kind") not in ("ReplicationController", "Job"):
            return []
        nested = isinstance(found, dict) and ("matchLabels" in found or "matchExpressions" in found)
        text = selector(found) if nested else label_text(found or spec.get("template", {}).get("metadata", {}).get("labels"))
        pods = self.api.list("Pod", owner["metadata"]["namespace"], labels=text).items
        return sorted(pods, key=lambda pod: (condition(pod, "Ready").get("status") != "True", _name(pod)))

    def agent_of(self, pod: Json) -> SyncChannel:
        """The agent of the node that a pod runs on."""
        node = pod.get("spec", {}).get("nodeName")
        if not node:
            meta = pod["metadata"]
            raise ClusterError(
                f"pod {meta['namespace']}/{meta['name']} is not on a node yet (`podwire describe pod {meta['name']}`)"
            )
        return self.agent(str(node))

    def edge(self) -> SyncChannel:
        """The agent of the cluster's edge. It has no object in the API, so only this machine's clusters' is known."""
        from podwire_core.rpc.sync import SyncChannel

        if self.cluster is None and os.environ.get("PODWIRE_API"):
            raise ClusterError("the edge of a cluster on other machines is not known here")
        name = paths.chosen(self.cluster)
        config = paths.read_config(name)
        if config is None or not config.edge:
            raise ClusterError(f"cluster {name!r} has no edge (`podwire up --name {name} --edge` makes one)")
        return SyncChannel(f"unix:{paths.run_dir(name) / EDGE / 'agent.sock'}")

    def edges(self) -> list[SyncChannel]:
        """The edge's agent, if there is one and it is known here."""
        try:
            return [self.edge()]
        except ClusterError:
            return []

    def agent(self, node: str) -> SyncChannel:
        """A node's agent; "edge" is the edge's."""
        if node == EDGE:
            return self.edge()
        return self.agent_at(self.get(self.make_ref(self.resource("Node"), node, None)))

    def agent_at(self, node: Json) -> SyncChannel:
        from podwire_core.rpc.sync import SyncChannel

        address = (node["metadata"].get("annotations") or {}).get(AGENT_ADDRESS)
        if not address:
            raise ClusterError(f"node {_name(node)} has not said where its agent listens (annotation {AGENT_ADDRESS})")
        return SyncChannel(address)

    def nodes(self) -> list[Json]:
        return sorted(self.api.list("Node").items, key=_name)


def _name(obj: Json) -> str:
    return str(obj["metadata"]["name"])


def key(obj: Json) -> str:
    """ "namespace/name" """
    return f"{obj['metadata'].get('namespace', '')}/{_name(obj)}"
