"""Kubernetes objects: the fields podwire acts on, as typed values, and the conventions all components share.

Rules it keeps: objects travel and are stored as plain dicts in Kubernetes' own shape, every field as given. A component that
acts on one decodes it here into a Struct (camelCase outside, snake_case inside); unknown fields are ignored by the
decoder and
survive in the dict. A decoded value is never written back whole: write by changing the dict.

A key is "namespace/name", or "name" for cluster-scoped kinds.  Order to read: metadata, core/v1, discovery, apps and
batch, helpers.
Shapes are those of https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

Json = dict[str, Any]
IntOrString = int | str
Quantity = str | int | float


class Kube(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all decoded shapes."""


class OwnerReference(Kube):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Kube):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    finalizers: list[str] | None = None


class LabelSelectorRequirement(Kube):
    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(Kube):
    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class LocalObjectReference(Kube):
    name: str = ""


class Condition(Kube):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


# --- core/v1: Pod --------------------------------


class ContainerPort(Kube):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class ObjectFieldSelector(Kube):
    field_path: str
    api_version: str = "v1"


class ResourceFieldSelector(Kube):
    resource: str
    container_name: str = ""
    divisor: Quantity = "0"


class KeySelector(Kube):
    key: str
    name: str = ""
    optional: bool | None = None


class EnvVarSource(Kube):
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(Kube):
    name: str
    value: str | None = None
    value_from: EnvVarSource | None = None


class SourceRef(Kube):
    name: str = ""
    optional: bool | None = None


class EnvFromSource(Kube):
    prefix: str = ""
    config_map_ref: SourceRef | None = None
    secret_ref: SourceRef | None = None


class ExecAction(Kube):
    command: list[str] | None = None


class HTTPHeader(Kube):
    name: str
    value: str


class HTTPGetAction(Kube):
    port: IntOrString
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: list[HTTPHeader] | None = None


class TCPSocketAction(Kube):
    port: IntOrString
    host: str = ""


class GRPCAction(Kube):
    port: int
    service: str = ""


class Probe(Kube):
    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    grpc: GRPCAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class LifecycleHandler(Kube):
    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    sleep: dict[str, int] | None = None


class Lifecycle(Kube):
    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None


class VolumeMount(Kube):
    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool | None = None


class ResourceRequirements(Kube):
    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class Container(Kube):
    name: str
    image: str = ""
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str = ""
    ports: list[ContainerPort] | None = None
    env: list[EnvVar] | None = None
    env_from: list[EnvFromSource] | None = None
    resources: ResourceRequirements | None = None
    volume_mounts: list[VolumeMount] | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    restart_policy: str = ""
    termination_message_path: str = ""
    termination_message_policy: str = ""
    image_pull_policy: str = ""
    stdin: bool = False
    tty: bool = False
    security_context: Json | None = None


class HostAlias(Kube):
    ip: str
    hostnames: list[str] | None = None


class PodDNSConfigOption(Kube):
    name: str = ""
    value: str | None = None


class PodDNSConfig(Kube):
    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[PodDNSConfigOption] | None = None


class Toleration(Kube):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class PodReadinessGate(Kube):
    condition_type: str


class PodSpec(Kube):
    containers: list[Container] = field(default_factory=list)
    init_containers: list[Container] | None = None
    volumes: list[Json] | None = None
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    dns_policy: str = "ClusterFirst"
    dns_config: PodDNSConfig | None = None
    node_selector: dict[str, str] | None = None
    service_account_name: str = ""
    service_account: str = ""  # the old name of the same
    scheduler_name: str = ""
    node_name: str = ""
    host_network: bool = False
    host_aliases: list[HostAlias] | None = None
    hostname: str = ""
    subdomain: str = ""
    set_hostname_as_fqdn: bool | None = field(default=None, name="setHostnameAsFQDN")
    affinity: Json | None = None
    tolerations: list[Toleration] | None = None
    topology_spread_constraints: list[Json] | None = None
    readiness_gates: list[PodReadinessGate] | None = None
    enable_service_links: bool = True
    security_context: Json | None = None


class PodIP(Kube):
    ip: str


class ContainerStatus(Kube):
    name: str
    ready: bool = False
    restart_count: int = 0
    started: bool | None = None
    image: str = ""
    container_id: str = field(default="", name="containerID")
    state: Json = field(default_factory=dict)
    last_state: Json = field(default_factory=dict)


class PodStatus(Kube):
    phase: str = "Pending"
    conditions: list[Condition] | None = None
    reason: str = ""
    message: str = ""
    host_ip: str = field(default="", name="hostIP")
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] | None = field(default=None, name="podIPs")
    start_time: str | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None


class Pod(Kube):
    metadata: ObjectMeta
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class PodTemplateSpec(Kube):
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: PodSpec = field(default_factory=PodSpec)


# --- core/v1: Service, Node, Namespace --------------------------------


class ServicePort(Kube):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: IntOrString | None = None  # None: the same as port
    node_port: int = 0
    app_protocol: str | None = None


class ClientIPConfig(Kube):
    timeout_seconds: int = 10800


class SessionAffinityConfig(Kube):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Kube):
    type: str = "ClusterIP"
    selector: dict[str, str] | None = None
    ports: list[ServicePort] | None = None
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    external_name: str = ""
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    load_balancer_ip: str = field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: list[str] | None = None
    load_balancer_class: str | None = None
    external_traffic_policy: str = ""
    internal_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    traffic_distribution: str | None = None
    allocate_load_balancer_node_ports: bool | None = None


class LoadBalancerIngress(Kube):
    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Kube):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Kube):
    load_balancer: LoadBalancerStatus = field(default_factory=LoadBalancerStatus)


class Service(Kube):
    metadata: ObjectMeta
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class Taint(Kube):
    key: str
    effect: str
    value: str = ""


class NodeSpec(Kube):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None
    unschedulable: bool = False


class NodeAddress(Kube):
    type: str
    address: str


class NodeStatus(Kube):
    addresses: list[NodeAddress] | None = None
    conditions: list[Condition] | None = None
    capacity: dict[str, Quantity] | None = None
    allocatable: dict[str, Quantity] | None = None


class Node(Kube):
    metadata: ObjectMeta
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)


class NamespaceSpec(Kube):
    finalizers: list[str] | None = None


class Namespace(Kube):
    metadata: ObjectMeta
    spec: NamespaceSpec = field(default_factory=NamespaceSpec)
    status: Json = field(default_factory=dict)


# --- discovery.k8s.io/v1: EndpointSlice --------------------------------


class ObjectReference(Kube):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""


class EndpointConditions(Kube):
    """None means: ready true, serving as ready, terminating false (discovery.k8s.io/v1)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(Kube):
    name: str


class EndpointHints(Kube):
    for_zones: list[ForZone] | None = None
    for_nodes: list[ForZone] | None = None


class Endpoint(Kube):
    addresses: list[str]
    conditions: EndpointConditions = field(default_factory=EndpointConditions)
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: ObjectReference | None = None
    hints: EndpointHints | None = None


class EndpointPort(Kube):
    port: int | None = None
    name: str | None = ""
    protocol: str = "TCP"
    app_protocol: str | None = None


class EndpointSlice(Kube):
    metadata: ObjectMeta
    address_type: str = "IPv4"
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


# --- apps/v1, batch/v1 --------------------------------


class RollingUpdate(Kube):
    max_surge: IntOrString | None = None
    max_unavailable: IntOrString | None = None
    partition: int | None = None


class UpdateStrategy(Kube):
    type: str = "RollingUpdate"
    rolling_update: RollingUpdate | None = None


class WorkloadSpec(Kube):
    """The common part of Deployment, ReplicaSet, StatefulSet, DaemonSet and ReplicationController (selector: see
    `selector_of`)."""

    template: PodTemplateSpec = field(default_factory=PodTemplateSpec)
    selector: Any = None
    replicas: int = 1
    min_ready_seconds: int = 0
    strategy: UpdateStrategy = field(default_factory=UpdateStrategy)
    update_strategy: UpdateStrategy = field(default_factory=UpdateStrategy)
    revision_history_limit: int = 10
    progress_deadline_seconds: int | None = None
    paused: bool = False
    service_name: str = ""
    pod_management_policy: str = "OrderedReady"


class Workload(Kube):
    metadata: ObjectMeta
    spec: WorkloadSpec = field(default_factory=WorkloadSpec)
    status: Json = field(default_factory=dict)


class JobSpec(Kube):
    template: PodTemplateSpec = field(default_factory=PodTemplateSpec)
    selector: LabelSelector | None = None
    parallelism: int = 1
    completions: int | None = None
    backoff_limit: int = 6
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    suspend: bool = False
    completion_mode: str = "NonIndexed"
    manual_selector: bool | None = None


class Job(Kube):
    metadata: ObjectMeta
    spec: JobSpec = field(default_factory=JobSpec)
    status: Json = field(default_factory=dict)


# --- helpers --------------------------------

K = TypeVar("K", bound=Kube)


class DecodeError(ValueError):
    """A field has the wrong type; the message names the path: `$.spec.ports[0].port: expected int, got str`."""


def decode(shape: type[K], obj: Json) -> K:
    """The typed view of an object. Raises DecodeError."""
    try:
        return msgspec.convert(obj, shape)
    except msgspec.ValidationError as error:
        text = str(error)
        what, _, path = text.partition(" - at ")
        raise DecodeError(f"{path.strip('`') or '$'}: {what[:1].lower()}{what[1:].replace('`', '')}") from None


def key_of(obj: Json) -> str:
    """ "namespace/name", or "name" where there is no namespace."""
    meta = obj["metadata"]
    namespace = meta.get("namespace")
    return f"{namespace}/{meta['name']}" if namespace else str(meta["name"])


def group_of(obj: Json) -> str:
    """ "apps" of apps/v1, "" of v1."""
    group, slash, _ = str(obj.get("apiVersion", "")).partition("/")
    return group if slash else ""
