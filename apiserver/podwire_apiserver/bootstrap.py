"""What every cluster has before anybody asks: the system namespaces and the Service `kubernetes`."""

from __future__ import annotations

import ipaddress

from podwire_apiserver.resources import Resources
from podwire_core.errors import ApiError
from podwire_core.objects import Json

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
API_PORT = 6443


def _kubernetes(service_cidr: str) -> Json:
    first = str(ipaddress.ip_network(service_cidr).network_address + 1)
    labels = {"component": "apiserver", "provider": "kubernetes"}
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": API_PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"clusterIP": first, "ports": ports},
    }


def bootstrap(resources: Resources, service_cidr: str) -> None:
    """Creates what is missing."""
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES]
    with resources.state.transaction():
        for obj in [*namespaces, _kubernetes(service_cidr)]:
            try:
                resources.create(obj)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
