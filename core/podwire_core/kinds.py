"""The kinds of objects: one table, and a catalogue that adds those of CustomResourceDefinitions to it.

Rules it keeps: a kind is named by its bare name ("Pod"); where two groups have the same one, the table's keeps it and the
other is "Kind.group". `acted_on` false: real Kubernetes kinds that are stored and listed, but nothing in podwire acts on them.
Order to read: ResourceInfo, the tables, Catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

Json = dict[str, Any]


class ResourceInfo(Struct, frozen=True, omit_defaults=True):
    """A kind as `kubectl api-resources` shows it."""

    kind: str
    group: str
    version: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    acted_on: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


# --- the tables: kind, plural, short names; "*" marks cluster-scoped kinds, "-" kinds that nothing acts on ----------

_TABLE = {
    "v1": """
        Namespace namespaces ns *
        Node nodes no *
        Pod pods po
        Service services svc
        Endpoints endpoints ep
        ReplicationController replicationcontrollers rc
        ConfigMap configmaps cm
        Secret secrets
        ServiceAccount serviceaccounts sa
        Event events ev
        PersistentVolume persistentvolumes pv * -
        PersistentVolumeClaim persistentvolumeclaims pvc -
        LimitRange limitranges limits -
        ResourceQuota resourcequotas quota -
        PodTemplate podtemplates -
        """,
    "discovery.k8s.io/v1": "EndpointSlice endpointslices",
    "apps/v1": """
        Deployment deployments deploy
        ReplicaSet replicasets rs
        StatefulSet statefulsets sts
        DaemonSet daemonsets ds
        ControllerRevision controllerrevisions -
        """,
    "batch/v1": """
        Job jobs
        CronJob cronjobs cj
        """,
    "coordination.k8s.io/v1": "Lease leases",
    "networking.k8s.io/v1": """
        NetworkPolicy networkpolicies netpol
        Ingress ingresses ing -
        IngressClass ingressclasses * -
        ServiceCIDR servicecidrs * -
        IPAddress ipaddresses ip * -
        """,
    "apiextensions.k8s.io/v1": "CustomResourceDefinition customresourcedefinitions crd,crds *",
    "rbac.authorization.k8s.io/v1": """
        Role roles -
        RoleBinding rolebindings -
        ClusterRole clusterroles * -
        ClusterRoleBinding clusterrolebindings * -
        """,
    "autoscaling/v2": "HorizontalPodAutoscaler horizontalpodautoscalers hpa -",
    "policy/v1": "PodDisruptionBudget poddisruptionbudgets pdb -",
    "scheduling.k8s.io/v1": "PriorityClass priorityclasses pc * -",
    "storage.k8s.io/v1": """
        StorageClass storageclasses sc * -
        VolumeAttachment volumeattachments * -
        CSIDriver csidrivers * -
        CSINode csinodes * -
        """,
    "node.k8s.io/v1": "RuntimeClass runtimeclasses * -",
    "admissionregistration.k8s.io/v1": """
        MutatingWebhookConfiguration mutatingwebhookconfigurations * -
        ValidatingWebhookConfiguration validatingwebhookconfigurations * -
        ValidatingAdmissionPolicy validatingadmissionpolicies * -
        ValidatingAdmissionPolicyBinding validatingadmissionpolicybindings * -
        """,
    "apiregistration.k8s.io/v1": "APIService apiservices * -",
    "certificates.k8s.io/v1": "CertificateSigningRequest certificatesigningrequests csr * -",
    "flowcontrol.apiserver.k8s.io/v1": """
        FlowSchema flowschemas * -
        PriorityLevelConfiguration prioritylevelconfigurations * -
        """,
}

# Further apiVersions in which a kind is taken, because Kubernetes serves them, too.
_ALSO = {("autoscaling/v1", "HorizontalPodAutoscaler"), ("events.k8s.io/v1", "Event")}

# apiVersions that Kubernetes has ceased to serve, as they still stand in old manifests.
RETIRED = {
    "extensions/v1beta1": ("Deployment", "ReplicaSet", "DaemonSet", "Ingress", "NetworkPolicy"),
    "apps/v1beta1": ("Deployment", "StatefulSet", "ControllerRevision"),
    "apps/v1beta2": ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "ControllerRevision"),
    "batch/v1beta1": ("CronJob",),
    "batch/v2alpha1": ("CronJob",),
    "networking.k8s.io/v1beta1": ("Ingress", "IngressClass"),
    "discovery.k8s.io/v1beta1": ("EndpointSlice",),
    "events.k8s.io/v1beta1": ("Event",),
    "policy/v1beta1": ("PodDisruptionBudget",),
    "autoscaling/v2beta1": ("HorizontalPodAutoscaler",),
    "autoscaling/v2beta2": ("HorizontalPodAutoscaler",),
    "coordination.k8s.io/v1beta1": ("Lease",),
    "rbac.authorization.k8s.io/v1beta1": ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
    "apiextensions.k8s.io/v1beta1": ("CustomResourceDefinition",),
    "storage.k8s.io/v1beta1": ("StorageClass", "CSIDriver", "CSINode", "VolumeAttachment"),
    "scheduling.k8s.io/v1beta1": ("PriorityClass",),
    "admissionregistration.k8s.io/v1beta1": ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"),
    "certificates.k8s.io/v1beta1": ("CertificateSigningRequest",),
}


def _rows() -> Iterable[ResourceInfo]:
    for api_version, text in _TABLE.items():
        group, slash, version = api_version.partition("/")
        for line in filter(None, map(str.strip, text.splitlines())):
            kind, plural, *more = line.split()
            names = [word for word in more if word not in ("*", "-")]
            yield ResourceInfo(
                kind,
                group if slash else "",
                version if slash else group,
                plural,
                kind.lower(),
                tuple(names[0].split(",")) if names else (),
                "*" not in more,
                "-" not in more,
            )


BUILTIN = tuple(_rows())


class Catalogue:
    """All kinds that are served now."""

    def __init__(self) -> None:
        self._custom: dict[str, tuple[ResourceInfo, frozenset[str]]] = {}  # by CRD: its kind, the versions it serves
        self._index()

    def infos(self) -> list[ResourceInfo]:
        return [*BUILTIN, *(info for info, _ in self._custom.values())]

    def define(self, crd: str, info: ResourceInfo, versions: Iterable[str]) -> None:
        """Serve a CustomResourceDefinition's kind."""
        self._custom[crd] = (info, frozenset(versions))
        self._index()

    def forget(self, crd: str) -> None:
        self._custom.pop(crd, None)
        self._index()

    def _index(self) -> None:
        self._by_object: dict[tuple[str, str], ResourceInfo] = {}
        self._by_word: dict[str, ResourceInfo] = {}
        self._names: dict[ResourceInfo, str] = {}
        for info in BUILTIN:
            self._add(info, (info.version,))
        for info, versions in self._custom.values():
            self._add(info, versions)
        for api_version, kind in _ALSO:
            self._by_object[api_version, kind] = self._by_word[kind.lower()]

    def _add(self, info: ResourceInfo, versions: Iterable[str]) -> None:
        for version in versions:
            self._by_object[f"{info.group}/{version}" if info.group else version, info.kind] = info
        bare = info.kind.lower()
        self._names[info] = f"{info.kind}.{info.group}" if bare in self._by_word else info.kind
        for word in (info.kind, info.plural, info.singular):
            self._by_word.setdefault(word.lower(), info)
            self._by_word.setdefault(f"{word}.{info.group}".lower(), info)
        for word in info.short_names:
            self._by_word.setdefault(word.lower(), info)

    def find(self, word: str) -> ResourceInfo | None:
        """By kind, "Kind.group", plural, singular or short name, in any case."""
        return self._by_word.get(word.lower())

    def of(self, api_version: str, kind: str) -> ResourceInfo | None:
        """The kind of an object with this apiVersion and kind."""
        return self._by_object.get((api_version, kind))

    def name(self, info: ResourceInfo) -> str:
        """ "Pod", or "Kind.group" if another kind has the name."""
        return self._names[info]

    def why_not(self, api_version: str, kind: str) -> str:
        """What to tell somebody whose object is of no kind we serve."""
        text = f'no matches for kind "{kind}" in version "{api_version}"'
        now = sorted({served for served, name in self._by_object if name == kind})
        if kind in RETIRED.get(api_version, ()) and now:
            return f"{text}: Kubernetes has ceased to serve it; use {now[-1]}"
        if now:
            return f"{text}; it is in {', '.join(now)}"
        close = next(
            (info.kind for info in self.infos() if info.kind.lower() == kind.lower() or info.plural == kind.lower()), None
        )
        if close:
            return f'{text}; did you mean "{close}"?'
        return f"{text}; is its CustomResourceDefinition missing?" if "." in api_version else text


def custom(crd: Json) -> tuple[ResourceInfo, list[str]]:
    """The kind that a valid CustomResourceDefinition defines, and the versions it serves."""
    spec, names = crd["spec"], crd["spec"]["names"]
    served = [version["name"] for version in spec["versions"] if version.get("served", True)]
    stored = next((version["name"] for version in spec["versions"] if version.get("storage")), served[0])
    info = ResourceInfo(
        names["kind"],
        spec["group"],
        stored,
        names["plural"],
        names.get("singular") or names["kind"].lower(),
        tuple(names.get("shortNames") or ()),
        spec.get("scope") == "Namespaced",
        True,
    )
    return info, served


def definition_of(info: ResourceInfo) -> str:
    """The name of the CustomResourceDefinition that defines such a kind."""
    return f"{info.plural}.{info.group}"
