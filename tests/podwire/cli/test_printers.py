"""Tables of whole objects: columns, wide ones, prefixes; and no object, however empty or odd, fails to print."""

import pytest

from podwire.cli import printers
from podwire.cli.formats import table

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "1970-01-01T00:00:00Z"},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"spec": {"containers": [{"name": "web", "image": "nginx"}]}},
    },
    "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
}


def printed(kind, *items, **options):
    return table(*printers.rows_of(kind, list(items), 60.0, **options)).splitlines()


def test_a_deployment():
    assert printed("Deployment", DEPLOYMENT) == [
        "NAME   READY   UP-TO-DATE   AVAILABLE   AGE",
        "web    2/3     3            2           60s",
    ]


def test_wide_with_namespace_and_prefix():
    title, row = printed("Deployment", DEPLOYMENT, wide=True, namespaces=True, prefix="deployment.apps/")
    assert title.split() == ["NAMESPACE", "NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert row.split() == ["default", "deployment.apps/web", "2/3", "3", "2", "60s", "web", "nginx", "app=web"]


def test_a_slice_and_endpoints():
    piece = {
        "metadata": {"name": "web-x"},
        "addressType": "IPv4",
        "ports": [{"port": 80}],
        "endpoints": [{"addresses": [f"10.244.1.{n}"]} for n in range(1, 6)],
    }
    assert printed("EndpointSlice", piece)[1].split()[:4] == ["web-x", "IPv4", "80", "10.244.1.1,10.244.1.2,10.244.1.3"]
    empty = {"metadata": {"name": "web-x"}, "addressType": "IPv4"}
    assert printed("EndpointSlice", empty)[1].split() == ["web-x", "IPv4", "<unset>", "<unset>", "<unknown>"]
    subsets = [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}, {"port": 81}]}]
    assert printed("Endpoints", {"metadata": {"name": "e"}, "subsets": subsets})[1].split()[1] == "10.0.0.1:80,10.0.0.1:81"


def test_an_event_says_how_often():
    event = {
        "metadata": {},
        "type": "Warning",
        "reason": "BackOff",
        "count": 4,
        "firstTimestamp": "1970-01-01T00:00:00Z",
        "lastTimestamp": "1970-01-01T00:00:50Z",
        "involvedObject": {"kind": "Pod", "name": "p"},
        "message": "Back-off",
    }
    assert printed("Event", event)[1] == "10s (x4 over 60s)   Warning   BackOff   pod/p    Back-off"


def test_a_job():
    job = {
        "metadata": {"name": "j"},
        "spec": {"completions": 2},
        "status": {
            "succeeded": 2,
            "startTime": "1970-01-01T00:00:00Z",
            "completionTime": "1970-01-01T00:00:07Z",
            "conditions": [{"type": "Complete", "status": "True"}],
        },
    }
    assert printed("Job", job)[1].split()[:4] == ["j", "Complete", "2/2", "7s"]


@pytest.mark.parametrize("kind", [*printers.COLUMNS, "Unknown"])
@pytest.mark.parametrize("odd", [{"metadata": {}}, {"metadata": {"name": "x"}, "spec": None, "status": None}])
def test_nothing_fails_to_print(kind, odd):
    for wide in (False, True):
        header, rows = printers.rows_of(kind, [odd], 0.0, wide=wide)
        assert len(header) == len(rows[0])


def test_columns_that_a_definition_asks_for():
    asked = [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Node", "type": "string", "jsonPath": ".spec.node", "priority": 1},
        {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Odd", "type": "string", "jsonPath": ".spec[[["},
    ]
    versions = [{"name": "v1", "additionalPrinterColumns": asked}, {"name": "v2"}]
    widget = {"metadata": {"name": "w", "creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"size": 3, "node": "n1"}}
    custom = printers.custom_columns({"spec": {"versions": versions}}, "v1")
    assert printed("Widget", widget, custom=custom)[0].split() == ["NAME", "SIZE", "SINCE", "ODD"]
    assert printed("Widget", widget, custom=custom)[1].split() == ["w", "3", "60s"]
    assert printed("Widget", widget, custom=custom, wide=True)[1].split() == ["w", "3", "n1", "60s"]
    assert printed("Widget", widget, custom=printers.custom_columns({"spec": {"versions": versions}}, "v2")) == [
        "NAME   AGE",
        "w      60s",
    ]
