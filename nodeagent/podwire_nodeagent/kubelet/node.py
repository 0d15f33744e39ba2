"""What the workers of a node share: configuration, the outside world, and what the agent's mirror last told."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import trio

from podwire_core.errors import ApiError
from podwire_core.objects import Json, PodSpec
from podwire_nodeagent.kubelet.cgroups import Cgroups
from podwire_nodeagent.kubelet.config import Api, Cni, Getter, KubeletConfig, RecordEvent, Standins
from podwire_nodeagent.kubelet.records import PodRecord
from podwire_nodeagent.kubelet.status import pod_status

log = logging.getLogger(__name__)
CONFLICTS = 5  # times a status is computed anew because somebody else wrote first
BUSYBOX_AT = "/run/podwire-busybox"  # where a container sees the applets


class Node:
    """`changed` is called with a pod's uid when its status may have changed. `said` holds what is said once a node."""

    def __init__(self, config: KubeletConfig, api: Api, cni: Cni, standins: Standins, record_event: RecordEvent) -> None:
        self.config, self.api, self.cni, self.standins, self.record_event = config, api, cni, standins, record_event
        self.cgroups = Cgroups(config.cgroup_root, f"{config.run_dir.parent.name}-{config.run_dir.name}")
        self.starts = trio.CapacityLimiter(config.parallel_starts)
        self.services: list[Json] = []
        self.config_map: Getter = lambda _namespace, _name: None
        self.secret: Getter = lambda _namespace, _name: None
        self.changed: Callable[[str], None] = lambda _uid: None
        self.said: set[str] = set()

    def busybox_dir(self) -> Path | None:
        """A directory with a link for each applet of the machine's busybox, made when it is first needed."""
        program = shutil.which("busybox")
        if program is None:
            return None
        directory = self.config.run_dir / "busybox"
        if not directory.exists():
            draft = directory.with_name("busybox.tmp")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for applet in subprocess.run([program, "--list"], capture_output=True, text=True).stdout.split():
                (draft / applet).symlink_to(program)
            draft.rename(directory)
        return directory

    async def write_status(self, record: PodRecord, spec: PodSpec) -> None:
        """Brings the object's status up to the record: only if it differs, and never over somebody else's change."""
        for _ in range(CONFLICTS):
            status = pod_status(record, spec, self.config.internal_ip, time.time(), self.config.other_ips)
            if status == record.pod.get("status"):
                return
            meta = record.pod["metadata"]
            try:
                record.pod = await self.api.update({**record.pod, "status": status}, "status")
                return
            except ApiError as error:
                if error.code not in (404, 409):
                    raise
            try:
                latest = await self.api.get("Pod", meta["name"], meta.get("namespace", "default"))
            except ApiError as error:
                if error.code == 404:
                    return  # deleted meanwhile
                raise
            if latest["metadata"]["uid"] != record.uid:
                return
            record.pod = latest
