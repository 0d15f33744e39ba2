"""The shape of every kind whose fields podwire reads: podwire_core.objects', and those that only the server looks into."""

from __future__ import annotations

from typing import Any

from msgspec import field

from podwire_core.objects import (
    EndpointSlice,
    IntOrString,
    Job,
    JobSpec,
    Json,
    Kube,
    LabelSelector,
    Namespace,
    Node,
    ObjectMeta,
    Pod,
    Service,
    Workload,
    WorkloadSpec,
)


class Bare(Kube):
    """A kind of which only the metadata is known."""

    metadata: ObjectMeta


class ConfigMap(Kube):
    metadata: ObjectMeta
    data: dict[str, str] | None = None
    binary_data: dict[str, str] | None = None
    immutable: bool | None = None


class Secret(Kube):
    metadata: ObjectMeta
    data: dict[str, str] | None = None
    string_data: dict[str, str] | None = None
    type: str = "Opaque"
    immutable: bool | None = None


class EndpointAddress(Kube):
    ip: str
    hostname: str = ""
    node_name: str | None = None
    target_ref: Json | None = None


class EndpointsPort(Kube):
    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None


class EndpointSubset(Kube):
    addresses: list[EndpointAddress] | None = None
    not_ready_addresses: list[EndpointAddress] | None = None
    ports: list[EndpointsPort] | None = None


class Endpoints(Kube):
    metadata: ObjectMeta
    subsets: list[EndpointSubset] | None = None


class IPBlock(Kube):
    cidr: str
    except_: list[str] | None = field(default=None, name="except")


class PolicyPeer(Kube):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class PolicyPort(Kube):
    protocol: str = "TCP"
    port: IntOrString | None = None
    end_port: int | None = None


class PolicyRule(Kube):
    from_: list[PolicyPeer] | None = field(default=None, name="from")
    to: list[PolicyPeer] | None = None
    ports: list[PolicyPort] | None = None


class NetworkPolicySpec(Kube):
    pod_selector: LabelSelector | None = None
    ingress: list[PolicyRule] | None = None
    egress: list[PolicyRule] | None = None
    policy_types: list[str] | None = None


class NetworkPolicy(Kube):
    metadata: ObjectMeta
    spec: NetworkPolicySpec = field(default_factory=NetworkPolicySpec)


class AppsSpec(WorkloadSpec):
    selector: LabelSelector | None = None


class Apps(Workload):
    spec: AppsSpec = field(default_factory=AppsSpec)


class ReplicationControllerSpec(WorkloadSpec):
    selector: dict[str, str] | None = None


class ReplicationController(Workload):
    spec: ReplicationControllerSpec = field(default_factory=ReplicationControllerSpec)


class LeaseSpec(Kube):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None


class Lease(Kube):
    metadata: ObjectMeta
    spec: LeaseSpec = field(default_factory=LeaseSpec)


class JobTemplate(Kube):
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: JobSpec = field(default_factory=JobSpec)


class CronJobSpec(Kube):
    schedule: str
    job_template: JobTemplate
    concurrency_policy: str = "Allow"
    suspend: bool = False
    starting_deadline_seconds: int | None = None
    successful_jobs_history_limit: int = 3
    failed_jobs_history_limit: int = 1
    time_zone: str | None = None


class CronJob(Kube):
    metadata: ObjectMeta
    spec: CronJobSpec


class DisruptionBudgetSpec(Kube):
    min_available: IntOrString | None = None
    max_unavailable: IntOrString | None = None
    selector: LabelSelector | None = None
    unhealthy_pod_eviction_policy: str | None = None


class DisruptionBudget(Kube):
    metadata: ObjectMeta
    spec: DisruptionBudgetSpec = field(default_factory=DisruptionBudgetSpec)


class DefinedNames(Kube):
    kind: str
    plural: str
    singular: str = ""
    short_names: list[str] | None = None
    list_kind: str = ""


class Schema(Kube):
    """What crd.py checks of OpenAPI v3."""

    type: str = ""
    properties: dict[str, Schema] | None = None
    additional_properties: Schema | bool | None = None
    items: Schema | None = None
    required: list[str] | None = None
    enum: list[Any] | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    pattern: str | None = None
    nullable: bool | None = None


class VersionSchema(Kube):
    open_api_v3_schema: Schema | None = field(default=None, name="openAPIV3Schema")


class DefinedVersion(Kube):
    name: str
    served: bool = True
    storage: bool = False
    schema: VersionSchema | None = None
    subresources: Json | None = None


class DefinitionSpec(Kube):
    group: str
    names: DefinedNames
    scope: str
    versions: list[DefinedVersion]


class CustomResourceDefinition(Kube):
    metadata: ObjectMeta
    spec: DefinitionSpec


class ServiceCIDRSpec(Kube):
    cidrs: list[str]


class ServiceCIDR(Kube):
    metadata: ObjectMeta
    spec: ServiceCIDRSpec


_SHAPES: dict[tuple[str, str], type[Kube]] = {
    ("", "Pod"): Pod,
    ("", "Service"): Service,
    ("", "Node"): Node,
    ("", "Namespace"): Namespace,
    ("", "ConfigMap"): ConfigMap,
    ("", "Secret"): Secret,
    ("", "Endpoints"): Endpoints,
    ("", "ReplicationController"): ReplicationController,
    ("apps", "Deployment"): Apps,
    ("apps", "ReplicaSet"): Apps,
    ("apps", "StatefulSet"): Apps,
    ("apps", "DaemonSet"): Apps,
    ("batch", "Job"): Job,
    ("batch", "CronJob"): CronJob,
    ("policy", "PodDisruptionBudget"): DisruptionBudget,
    ("discovery.k8s.io", "EndpointSlice"): EndpointSlice,
    ("networking.k8s.io", "NetworkPolicy"): NetworkPolicy,
    ("networking.k8s.io", "ServiceCIDR"): ServiceCIDR,
    ("coordination.k8s.io", "Lease"): Lease,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): CustomResourceDefinition,
}


def shape_of(group: str, kind: str) -> type[Kube]:
    return _SHAPES.get((group, kind), Bare)
