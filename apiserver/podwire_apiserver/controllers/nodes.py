"""Nodes: their pod networks, their health, and the pods of nodes that are unwell or gone.

Rules they keep: a node's podCIDR, once given, stays; "node3" gets the third network if it is free, so that networks do
not depend on the order of registration, any other node the lowest free one. A node whose Lease was not renewed for 40 s is
Unknown, tainted unreachable, and its pods not ready (pkg/controller/nodelifecycle); pods leave a node with a NoExecute
taint when their toleration ends (pkg/controller/tainteviction), and are forgotten when their node is (podgc).

Order to read: NodeIpamController, NodeLifecycleController, TaintEvictionController, PodGarbageController.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from podwire_core.constants import NODE_LEASE_NAMESPACE, NODE_LEASE_SECONDS
from podwire_core.objects import Json, key_of

from .actions import Again, AnyAction, Delete, Event, Patch, UpdateStatus
from .common import condition_of, created, deleting, finished, ready, seconds, timestamp, uid_of, with_condition
from .fit import tolerates
from .view import Change, View

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
UNREACHABLE, NOT_READY = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_OURS = {UNREACHABLE, NOT_READY, UNSCHEDULABLE}


class NodeIpamController:
    name = "node-ipam-controller"
    kinds = ("Node",)

    def __init__(self, cluster_cidr: str, mask: int, mask6: int = 64) -> None:
        """`cluster_cidr`: one network, or one of each family with a comma between."""
        networks = [ipaddress.ip_network(cidr) for cidr in cluster_cidr.split(",")]
        self.networks = [(network, mask if network.version == 4 else mask6) for network in networks]

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.new is not None:
            return () if _cidrs(change.new) else [change.key]
        return sorted(key for key, node in view.all("Node").items() if not _cidrs(node))  # a network came free

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        node = view.get("Node", key)
        if node is None or deleting(node) or _cidrs(node):
            return ()
        taken = [ipaddress.ip_network(cidr, strict=False) for other in view.all("Node").values() for cidr in _cidrs(other)]
        cidrs = []
        for cluster, mask in self.networks:
            network = _free(cluster, mask, key, taken)
            if network is None:
                note = f"no network of /{mask} left in {cluster}"
                return [Event(node, "Warning", "CIDRNotAvailable", note, self.name)]
            cidrs.append(str(network))
        return [Patch("Node", key, {"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}, uid=uid_of(node))]


def _free(cluster: Network, mask: int, name: str, taken: list[Network]) -> Network | None:
    """A node's part of the cluster's network: the one of its number, or the lowest free one."""
    base, shift, count = int(cluster.network_address), cluster.max_prefixlen - mask, 1 << (mask - cluster.prefixlen)
    used: set[int] = set()
    for net in taken:
        if net.version == cluster.version:
            first = (int(net.network_address) - base) >> shift
            last = (int(net.broadcast_address) - base) >> shift
            used.update(range(max(first, 0), min(last + 1, count)))
    number = re.search(r"(\d+)$", name)
    wishes = [int(number[1])] if number else []
    for index in (*wishes, *range(1, count), 0):
        if index < count and index not in used:
            address = type(cluster.network_address)(base + (index << shift))
            return ipaddress.ip_network(f"{address}/{mask}")
    return None


def _cidrs(node: Json) -> list[str]:
    spec = node.get("spec") or {}
    return list(spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []))


class NodeLifecycleController:
    """Turns renewals that stay away into conditions, and conditions into taints."""

    name = "node-lifecycle-controller"
    kinds = ("Node", "Lease")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Node":
            return [change.key] if change.new else ()
        namespace, _, name = change.key.partition("/")
        node = view.get("Node", name) if namespace == NODE_LEASE_NAMESPACE else None
        if node is None:
            return ()
        known = (condition_of(node, "Ready") or {}).get("status") in ("True", "False")
        return () if known and change.old is not None and change.new is not None else [name]  # a renewal changes nothing

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        node = view.get("Node", key)
        if node is None or deleting(node):
            return ()
        due = last_seen(view, node) + NODE_LEASE_SECONDS
        if due > now:
            return [*_retaint(node, now), Again(due)]
        if (condition_of(node, "Ready") or {}).get("status") != "Unknown":
            node = _unknown(node, now)
            note = f"Node {key} status is now: NodeNotReady"
            lost: list[AnyAction] = [UpdateStatus(node), Event(node, "Normal", "NodeNotReady", note, self.name)]
            return [*lost, *_retaint(node, now), *_pods_not_ready(view, key, now)]
        return [*_retaint(node, now), *_pods_not_ready(view, key, now)]


def last_seen(view: View, node: Json) -> float:
    name = node["metadata"]["name"]
    lease = view.get("Lease", f"{NODE_LEASE_NAMESPACE}/{name}") or {}
    renewed = seconds((lease.get("spec") or {}).get("renewTime"))
    return max(renewed, created(node))


def _unknown(node: Json, now: float) -> Json:
    status = node.get("status") or {}
    text = "Kubelet stopped posting node status."
    conditions = with_condition(status.get("conditions"), "Ready", "Unknown", "NodeStatusUnknown", text, now)
    return {**node, "status": {**status, "conditions": conditions}}


def _retaint(node: Json, now: float) -> list[AnyAction]:
    """The taints of the node's condition; those of others stay."""
    ready_status = (condition_of(node, "Ready") or {}).get("status", "False")
    key = {"True": "", "False": NOT_READY}.get(ready_status, UNREACHABLE)
    wanted = [(key, "NoSchedule"), (key, "NoExecute")] if key else []
    if (node.get("spec") or {}).get("unschedulable"):
        wanted.append((UNSCHEDULABLE, "NoSchedule"))
    have: list[Json] = (node.get("spec") or {}).get("taints") or []
    kept = [each for each in have if each.get("key") not in _OURS or (each["key"], each.get("effect")) in wanted]
    there = {(each.get("key"), each.get("effect")) for each in kept}
    new = [{"key": key, "effect": effect, "timeAdded": timestamp(now)} for key, effect in wanted if (key, effect) not in there]
    if not new and len(kept) == len(have):
        return []
    return [Patch("Node", node["metadata"]["name"], {"spec": {"taints": [*kept, *new] or None}}, uid=uid_of(node))]


def _pods_not_ready(view: View, node: str, now: float) -> list[AnyAction]:
    """Nobody vouches for them any more, so they leave the endpoints."""
    actions: list[AnyAction] = []
    for pod in view.pods_on(node):
        if ready(pod) and not finished(pod):
            status = pod["status"]
            conditions = with_condition(status.get("conditions"), "Ready", "False", "NodeNotReady", "", now)
            actions.append(UpdateStatus({**pod, "status": {**status, "conditions": conditions}}))
    return actions


class TaintEvictionController:
    """Keys are pods."""

    name = "taint-eviction-controller"
    kinds = ("Node", "Pod")

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Node":
            same = change.old is not None and change.new is not None and _executing(change.old) == _executing(change.new)
            idle = change.old is None and change.new is not None and not _executing(change.new)
            return () if same or idle else [key_of(pod) for pod in view.pods_on(change.key)]
        before = ((change.old or {}).get("spec") or {}).get("nodeName")
        bound = change.new is not None and change.new["spec"].get("nodeName") not in (None, "", before)
        node = view.get("Node", change.new["spec"]["nodeName"]) if bound and change.new else None
        return [change.key] if node is not None and _executing(node) else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        pod = view.get("Pod", key)
        node = view.get("Node", pod["spec"].get("nodeName") or "") if pod else None
        if pod is None or node is None or deleting(pod) or finished(pod):
            return ()
        at = min((_leaves_at(pod, taint, now) for taint in _executing(node)), default=float("inf"))
        if at > now:
            return [Again(at)] if at != float("inf") else ()
        note = f"Marking for deletion Pod {key}"
        return [Event(pod, "Normal", "TaintManagerEviction", note, self.name), Delete("Pod", key, uid_of(pod))]


def _executing(node: Json) -> list[Json]:
    return [taint for taint in (node.get("spec") or {}).get("taints") or () if taint.get("effect") == "NoExecute"]


def _leaves_at(pod: Json, taint: Json, now: float) -> float:
    """When the taint drives the pod away: the shortest of the tolerations that cover it counts."""
    tolerations = [each for each in pod["spec"].get("tolerations") or () if tolerates(each, taint)]
    if not tolerations:
        return now
    limits = [each["tolerationSeconds"] for each in tolerations if each.get("tolerationSeconds") is not None]
    return (seconds(taint.get("timeAdded")) or now) + max(min(limits), 0) if limits else float("inf")


class PodGarbageController:
    """Pods whose node is gone. Keys are nodes."""

    name = "pod-garbage-collector"
    kinds = ("Node", "Pod")
    patience = 40.0  # a pod may be bound to a node that registers in this moment

    def wakes(self, view: View, change: Change) -> Iterable[str]:
        if change.kind == "Node":
            return [change.key] if change.new is None else ()
        node = change.new["spec"].get("nodeName") if change.new else None
        return [node] if node and view.get("Node", node) is None else ()

    def reconcile(self, view: View, key: str, now: float) -> Sequence[AnyAction]:
        if view.get("Node", key) is not None:
            return ()
        actions: list[AnyAction] = []
        for pod in view.pods_on(key):
            if created(pod) + self.patience > now:
                actions.append(Again(created(pod) + self.patience))
            else:
                actions.append(Delete("Pod", key_of(pod), uid_of(pod), grace=0))
        return actions
