"""All controllers, in one place and one order: what makes pods, what places them, what follows them."""

from __future__ import annotations

from podwire_core.constants import LOAD_BALANCER_POOL, POD_CIDR

from .crd import CrdController
from .cronjob import CronJobController
from .daemonset import DaemonSetController
from .deployment import DeploymentController
from .disruption import DisruptionController
from .endpointslice import EndpointSliceController
from .engine import Controller
from .garbage import GarbageCollector
from .job import JobController
from .loadbalancer import LoadBalancerController
from .mirroring import EndpointsController, MirroringController
from .namespaces import NamespaceController, ServiceAccountController
from .nodes import NodeIpamController, NodeLifecycleController, PodGarbageController, TaintEvictionController
from .replicaset import ReplicaSetController
from .scheduler import Scheduler
from .statefulset import StatefulSetController


def workload_controllers(cluster_cidr: str = POD_CIDR, node_mask: int = 24, node_mask6: int = 64) -> list[Controller]:
    """Those that fill in what is missing and take nothing away: all that `settle` needs."""
    return [
        CrdController(),
        ServiceAccountController(),
        NodeIpamController(cluster_cidr, node_mask, node_mask6),
        DeploymentController(),
        ReplicaSetController("ReplicaSet"),
        ReplicaSetController("ReplicationController"),
        StatefulSetController(),
        DaemonSetController(),
        JobController(),
        Scheduler(),
        EndpointSliceController(),
        EndpointsController(),
        MirroringController(),
    ]


def all_controllers(
    cluster_cidr: str = POD_CIDR, node_mask: int = 24, pool: str = LOAD_BALANCER_POOL, node_mask6: int = 64
) -> list[Controller]:
    return [
        *workload_controllers(cluster_cidr, node_mask, node_mask6),
        CronJobController(),
        DisruptionController(),
        LoadBalancerController(pool),
        NodeLifecycleController(),
        TaintEvictionController(),
        PodGarbageController(),
        NamespaceController(),
        GarbageCollector(),
    ]
