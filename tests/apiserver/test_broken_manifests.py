"""Broken manifests, each with the one line (or lines) that its writer sees. Nothing of a broken file is stored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_apiserver.apply import apply_all
from podwire_core import manifest
from podwire_core.errors import ApiError
from podwire_core.manifest import ManifestError

HEAD = {"Pod": "v1", "Service": "v1", "ConfigMap": "v1", "Secret": "v1", "Namespace": "v1", "Node": "v1", "Endpoints": "v1"}
HEAD |= {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "Job": "batch/v1", "CronJob": "batch/v1"}
HEAD |= {"NetworkPolicy": "networking.k8s.io/v1", "EndpointSlice": "discovery.k8s.io/v1", "ReplicationController": "v1"}
LABEL = "is not a DNS label (RFC 1123): a-z, 0-9 and '-', not first or last, at most 63 characters"


def said(world, text: str | bytes) -> list[str]:
    """What the command prints: the server's `$[0].spec` is told as `web.yaml:1: $.spec`."""
    revision = world.state.revision
    try:
        documents = manifest.load(text, "web.yaml")
        apply_all(world.api, [document.object for document in documents])
    except ManifestError as error:
        lines = error.errors
    except ApiError as error:
        lines = [f"{cause.field}: {cause.message}".replace("$[0]", "$") for cause in error.causes]
    else:
        lines = []
    assert all("\n" not in line and len(line) < 250 for line in lines)
    assert world.state.revision == revision or not lines
    return lines


SYNTAX = [
    ("a tab", "apiVersion: v1\nkind: Pod\n\tmetadata: x", "web.yaml:3: a tab in the indentation; YAML indents with spaces"),
    ("no end", "a: [1, 2\nb: 3", "web.yaml:2: did not find expected ',' or ']' while parsing a flow sequence"),
    ("bad indent", "a:\n  b: 1\n c: 2", "web.yaml:3: did not find expected key while parsing a block mapping"),
    ("twice", "apiVersion: v1\nkind: Pod\nkind: Pod", "web.yaml:3: the key 'kind' is there twice"),
    ("twice in JSON", '{"apiVersion": "v1", "kind": "Pod", "kind": "x"}', "web.yaml: the key 'kind' is there twice"),
    ("binary", b"\x7fELF\x02\x01\x00\x00", "web.yaml: binary data (a zero byte at offset 6), expected YAML or JSON text"),
    ("not UTF-8", b"a: \xff\xfe", "web.yaml: not UTF-8 text (byte 0xff at offset 3)"),
    ("a tag", "a: !!python/object/apply:os.system ['x']", "web.yaml:1: unknown tag !!python/object/apply:os.system"),
    ("infinity", "apiVersion: v1\nx: .inf", "web.yaml:2: '.inf' is not a float that JSON can hold"),
    ("huge number", "x: 99999999999999999999999", "web.yaml:1: '99999999999999999999999' is not a int that JSON can hold"),
    ("itself", "a: &a\n  b: *a", "web.yaml:1: an alias refers to what contains it"),
    ("no anchor", "a: *b", "web.yaml:1: found undefined alias"),
    ("a bomb", "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
     "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
     "web.yaml:1: aliases repeat more than 100000 values; write it without them"),
    ("deep", "a: " + "[" * 5000, "web.yaml:1: nested deeper than 100 levels"),
    ("deep JSON", '{"a":' * 5000, "web.yaml: nested deeper than 100 levels"),
    ("huge", b"#" * (33 * 1024 * 1024), "web.yaml: 35 MB; a manifest has at most 33 MB: split it"),
    ("a list", "- a\n- b", "web.yaml:1: expected an object (a mapping with apiVersion and kind), got array"),
    ("a word", "hello", "web.yaml:1: expected an object (a mapping with apiVersion and kind), got str"),
    ("no kind", "# x\napiVersion: v1\n", "web.yaml:2: $.kind: missing"),
    ("kind is a number", "apiVersion: v1\nkind: 5", "web.yaml:1: $.kind: expected str, got int"),
    ("bad item", "apiVersion: v1\nkind: List\nitems:\n- 5", "web.yaml:4: $.items[0]: expected an object, got int"),
    ("a key", "apiVersion: v1\nkind: Pod\n? [a]\n: b", "web.yaml:3: a key must be a string"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), [case[1:] for case in SYNTAX], ids=[case[0] for case in SYNTAX])
def test_broken_text(world, text, line):
    assert said(world, text) == [line]


KINDS = [
    ("Deploymnt", "v1", '$: no matches for kind "Deploymnt" in version "v1"'),
    ("pod", "v1", '$: no matches for kind "pod" in version "v1"; did you mean "Pod"?'),
    ("Deployment", "extensions/v1beta1",
     '$: no matches for kind "Deployment" in version "extensions/v1beta1": Kubernetes has ceased to serve it; use apps/v1'),
    ("Deployment", "v1", '$: no matches for kind "Deployment" in version "v1"; it is in apps/v1'),
    ("VirtualService", "networking.istio.io/v1",
     '$: no matches for kind "VirtualService" in version "networking.istio.io/v1"; is its CustomResourceDefinition missing?'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "version", "line"), KINDS)
def test_unknown_kinds(world, kind, version, line):
    assert said(world, f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}") == [line]


C = "containers: [{name: c, image: i}]"
TEMPLATE = f"template: {{metadata: {{labels: {{a: b}}}}, spec: {{{C}}}}}"
# fmt: off
FIELDS = [
    ("Pod", "spec: {}", "$.spec.containers: missing; a pod has at least one container"),
    ("Pod", "spec: []", "$.spec: expected object, got array"),
    ("Pod", "spec: {containers: {name: c}}", "$.spec.containers: expected array, got object"),
    ("Pod", "spec: {containers: [{image: i}]}", "$.spec.containers[0].name: missing"),
    ("Pod", "spec: {containers: [{name: c}]}", "$.spec.containers[0].image: missing"),
    ("Pod", "spec: {containers: [{name: C_1, image: i}]}", f'$.spec.containers[0].name: "C_1" {LABEL}'),
    ("Pod", "spec: {containers: [{name: c, image: i}, {name: c, image: i}]}", '$.spec.containers[1].name: "c" is there twice'),
    ("Pod", "spec: {containers: [{name: c, image: i, ports: [{containerPort: '80'}]}]}",
     "$.spec.containers[0].ports[0].containerPort: expected int, got str"),
    ("Pod", "spec: {containers: [{name: c, image: i, ports: [{containerPort: 0}]}]}",
     "$.spec.containers[0].ports[0].containerPort: 0 is not a port (1-65535)"),
    ("Pod", "spec: {containers: [{name: c, image: i, env: [{name: A, value: 5}]}]}",
     "$.spec.containers[0].env[0].value: expected str, got int"),
    ("Pod", "spec: {containers: [{name: c, image: i, env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]}]}",
     '$.spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: "spec.x" is not a field a pod can refer to'),
    ("Pod", "spec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1 core}}}]}",
     "$.spec.containers[0].resources.limits.cpu: '1 core' is not a quantity (such as 250m, 64Mi or 2)"),
    ("Pod", "spec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1}, requests: {cpu: 1500m}}}]}",
     "$.spec.containers[0].resources.requests.cpu: 1500m is more than the limit 1"),
    ("Pod", "spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}",
     '$.spec.containers[0].volumeMounts[0].name: there is no volume "v"'),
    ("Pod", "spec: {containers: [{name: c, image: i, livenessProbe: {periodSeconds: 5}}]}",
     "$.spec.containers[0].livenessProbe: expected one of exec, httpGet, tcpSocket, grpc, got none"),
    ("Pod", "spec: {containers: [{name: c, image: i, readinessProbe: {httpGet: {port: 99999}}}]}",
     "$.spec.containers[0].readinessProbe.httpGet.port: 99999 is not a port (1-65535)"),
    ("Pod", f"spec: {{{C}, restartPolicy: Sometimes}}",
     '$.spec.restartPolicy: "Sometimes" is not one of Always, OnFailure, Never'),
    ("Pod", f"spec: {{{C}, dnsPolicy: None}}", "$.spec.dnsConfig.nameservers: missing; dnsPolicy None needs at least one"),
    ("Pod", f"spec: {{{C}, hostAliases: [{{ip: 1.2.3.400, hostnames: [a]}}]}}",
     '$.spec.hostAliases[0].ip: "1.2.3.400" is not an IP address'),
    ("Pod", f"spec: {{{C}, nodeSelector: {{zone: yes}}}}", None),
    ("Pod", f"spec: {{{C}, nodeSelector: {{zone: true}}}}", "$.spec.nodeSelector.zone: expected str, got bool"),
    ("Pod", f"spec: {{{C}, tolerations: [{{operator: Maybe}}]}}",
     '$.spec.tolerations[0].operator: "Maybe" is not one of Exists, Equal'),
    ("Service", "spec: {}", "$.spec.ports: missing; a Service has at least one port, unless it is headless"),
    ("Service", "spec: {clusterIP: None}", None),
    ("Service", "spec: {ports: [{name: http}]}", "$.spec.ports[0].port: missing"),
    ("Service", "spec: {ports: [{port: 80, protocol: tcp}]}", '$.spec.ports[0].protocol: "tcp" is not one of TCP, UDP, SCTP'),
    ("Service", "spec: {ports: [{port: 80, targetPort: Http}]}",
     "$.spec.ports[0].targetPort: \"Http\" is not a port name: a-z, 0-9 and single '-', with a letter, at most 15 characters"),
    ("Service", "spec: {ports: [{name: a, port: 80}, {name: a, port: 81}]}", '$.spec.ports[1].name: "a" is there twice'),
    ("Service", "spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}", "$.spec.ports[1].port: 80/TCP is there twice"),
    ("Service", "spec: {ports: [{name: a, port: 80}, {port: 81}]}",
     "$.spec.ports[1].name: missing; with several ports each has a name"),
    ("Service", "spec: {ports: [{port: 80}], clusterIP: 10.96.0.1}",
     "$.spec.clusterIP: 10.96.0.1 is taken by Service default/kubernetes"),
    ("Service", "spec: {ports: [{port: 80}], clusterIP: 10.0.0.1}",
     "$.spec.clusterIP: 10.0.0.1 is not in the service range 10.96.0.0/12"),
    ("Service", "spec: {ports: [{port: 80}], clusterIP: 010.96.0.1}", '$.spec.clusterIP: "010.96.0.1" is not an IP address'),
    ("Service", "spec: {type: ExternalName}", "$.spec.externalName: missing; type ExternalName needs one"),
    ("Service", "spec: {type: NodePort, ports: [{port: 80, nodePort: 8080}]}",
     "$.spec.ports[0].nodePort: 8080 is not in the node port range 30000-32767"),
    ("Service", "spec: {ports: [{port: 80, nodePort: 30080}]}", "$.spec.ports[0].nodePort: may not be set for type ClusterIP"),
    ("Service", "spec: {ports: [{port: 80}], sessionAffinity: Cookie}",
     '$.spec.sessionAffinity: "Cookie" is not one of None, ClientIP'),
    ("Service", "spec: {type: LoadBalancer, ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/33]}",
     '$.spec.loadBalancerSourceRanges[0]: "10.0.0.0/33" is not a CIDR (such as 10.0.0.0/8)'),
    ("Deployment", f"spec: {{{TEMPLATE}}}", "$.spec.selector: missing"),
    ("Deployment", f"spec: {{selector: {{app: web}}, {TEMPLATE}}}",
     "$.spec.selector: empty; it would select every pod; app belongs under matchLabels"),
    ("Deployment", f"spec: {{selector: {{matchLabels: {{a: c}}}}, {TEMPLATE}}}",
     '$.spec.template.metadata.labels: "a=b" is not what $.spec.selector selects'),
    ("Deployment", f"spec: {{replicas: -1, selector: {{matchLabels: {{a: b}}}}, {TEMPLATE}}}",
     "$.spec.replicas: -1 is less than 0"),
    ("Deployment", f"spec: {{replicas: '3', selector: {{matchLabels: {{a: b}}}}, {TEMPLATE}}}",
     "$.spec.replicas: expected int, got str"),
    ("StatefulSet", f"spec: {{selector: {{matchExpressions: [{{key: a, operator: Is}}]}}, {TEMPLATE}}}",
     '$.spec.selector.matchExpressions[0].operator: "Is" is not one of In, NotIn, Exists, DoesNotExist'),
    ("Job", f"spec: {{template: {{spec: {{{C}}}}}}}",
     '$.spec.template.spec.restartPolicy: "Always": here it is OnFailure or Never'),
    ("CronJob", f"spec: {{schedule: often, jobTemplate: {{spec: {{template: {{spec: {{{C}, restartPolicy: Never}}}}}}}}}}",
     '$.spec.schedule: \'often\' has 1 fields, a schedule has five: minute, hour, day of month, month, day of week'),
    ("ReplicationController", f"spec: {{selector: {{a: c}}, {TEMPLATE}}}",
     '$.spec.template.metadata.labels: "a=b" is not what $.spec.selector selects'),
    ("NetworkPolicy", "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}",
     '$.spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0" is not a CIDR (such as 10.0.0.0/8)'),
    ("NetworkPolicy", "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}",
     '$.spec.ingress[0].from[0].ipBlock.except[0]: "11.0.0.0/9" is not within 10.0.0.0/8'),
    ("NetworkPolicy", "spec: {podSelector: {}, egress: [{to: [{}]}]}",
     "$.spec.egress[0].to[0]: expected podSelector, namespaceSelector or ipBlock"),
    ("NetworkPolicy", "spec: {podSelector: {}, ingress: [{ports: [{port: 90, endPort: 80}]}]}",
     "$.spec.ingress[0].ports[0].endPort: 80 is less than the port 90"),
    ("NetworkPolicy", "spec: {podSelector: {}, policyTypes: [ingress]}",
     '$.spec.policyTypes[0]: "ingress" is not one of Ingress, Egress'),
    ("EndpointSlice", "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
     '$.endpoints[0].addresses[0]: "fd00::1" is not an IPv4 address, as $.addressType says'),
    ("Endpoints", "subsets: [{addresses: [{ip: x}]}]", '$.subsets[0].addresses[0].ip: "x" is not an IP address'),
    ("Node", "spec: {podCIDR: 10.244.1.7/24}", '$.spec.podCIDR: "10.244.1.7/24" has host bits set; did you mean 10.244.1.0/24?'),
    ("ConfigMap", "data: {a: 5}", "$.data.a: expected str, got int"),
    ("ConfigMap", "data: {a/b: x}", "$.data.a/b: \"a/b\" is not a key: letters, digits, '-', '_', '.', at most 253 characters"),
    ("Secret", "data: {password: s3cret!}", "$.data.password: is not base64 (plain text goes to stringData or data)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "line"), FIELDS)
def test_wrong_fields(world, kind, body, line):
    text = f"apiVersion: {HEAD[kind]}\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n"
    assert said(world, text) == ([line] if line else [])


METADATA = [
    ("{}", "$.metadata.name: missing; or generateName"),
    ("{name: Web}", "is not a DNS name (RFC 1123): a-z, 0-9, '-' and '.', a letter or digit at the ends of each part"),
    ("{name: 5}", "$.metadata.name: expected str, got int"),
    ("{name: x, labels: [a]}", "$.metadata.labels: expected object, got array"),
    ("{name: x, labels: {a: on}}", None),
    ("{name: x, labels: {a: 1}}", "$.metadata.labels.a: expected str, got int"),
    ("{name: x, labels: {a b: c}}", '$.metadata.labels.a b: "a b": the name has letters, digits'),
    ("{name: x, labels: {a: -b-}}", '$.metadata.labels.a: "-b-" is not a label value'),
    ("{name: x, annotations: {a: true}}", "$.metadata.annotations.a: expected str, got bool"),
    ("{name: x, namespace: No}", f'$.metadata.namespace: "No" {LABEL}'),
    ("{name: x, namespace: absent}", '$.metadata.namespace: no namespace "absent"'),
    ("{name: x, ownerReferences: [{kind: Pod, name: x, apiVersion: v1, uid: ''}]}", "$.metadata.ownerReferences[0].uid: missing"),
]


@pytest.mark.parametrize(("meta", "part"), METADATA)
def test_wrong_metadata(world, meta, part):
    lines = said(world, f"apiVersion: v1\nkind: ConfigMap\nmetadata: {meta}")
    assert (part in lines[0] and len(lines) == 1) if part else lines == []


def test_a_service_name_and_a_cluster_scoped_kind(world):
    [line] = said(world, "apiVersion: v1\nkind: Service\nmetadata: {name: 1a}\nspec: {ports: [{port: 1}]}")
    assert line.startswith('$.metadata.name: "1a" is not a DNS label (RFC 1035)')
    assert said(world, "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}") == [
        "$.metadata.namespace: a Node is in no namespace"
    ]


def test_all_errors_of_an_object_at_once(world):
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: X, labels: {a: 1}}\nspec: {containers: [{name: 5, image: [], ports: {}}]}"
    assert said(world, text) == [
        "$.metadata.labels.a: expected str, got int",
        "$.spec.containers[0].name: expected str, got int",
        "$.spec.containers[0].image: expected str, got array",
        "$.spec.containers[0].ports: expected array, got object",
    ]


# --- whatever is sent, the answer is objects or errors --------------------------------

scalars = st.sampled_from(["", "x", "-", 0, -1, 70000, 1.5, True, None, "10.0.0.0/8", "None", {}, [], [None], {"": None}])
FIELD_NAMES = """
apiVersion kind metadata spec status name namespace labels containers ports port selector matchLabels
matchExpressions template addresses image env resources limits clusterIP clusterIPs type podCIDR from ingress
ipBlock cidr versions names group data volumes livenessProbe httpGet strategy rollingUpdate tolerations
ownerReferences annotations finalizers subsets endpoints
"""
fields = st.sampled_from(FIELD_NAMES.split())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(fields, inner, max_size=4)), max_leaves=25
)
heads = st.sampled_from(
    [*HEAD.items(), ("CustomResourceDefinition", "apiextensions.k8s.io/v1"), ("Lease", "coordination.k8s.io/v1")]
)


@settings(max_examples=300, deadline=None)
@given(heads, st.dictionaries(fields, values, max_size=4), values)
def test_no_object_makes_the_server_fail(make_world_once, head, body, spec):
    kind, version = head
    obj = {"metadata": {"name": "x"}, "spec": spec, **body, "apiVersion": version, "kind": kind}
    try:
        apply_all(make_world_once.api, [obj], dry_run=True)
    except ApiError as error:
        code = error.code
    else:
        code = 200
    assert code in (200, 404, 409, 413, 422)


@pytest.fixture(scope="module")
def make_world_once(tmp_path_factory):
    from tests.apiserver.conftest import World

    world = World(tmp_path_factory.mktemp("fuzz"))
    yield world
    world.store.close()
