"""securityContext: the user, groups and capabilities a container's program gets. Pure.

A container without securityContext runs as root with the capabilities that container runtimes give by default. In a user
namespace there is one user only, and the shim leaves it at that.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import Container, Json, PodSpec

CAPABILITIES = {  # linux/capability.h
    name: number
    for number, name in enumerate(
        [
            *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
            *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
            *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
            *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
            *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
            "CHECKPOINT_RESTORE",
        ]
    )
}
DEFAULT = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_RAW"),
    *("SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)


class Privileges(Struct):
    """None: as the shim is. `capabilities` None: all."""

    uid: int | None
    gid: int | None
    groups: list[int] | None
    capabilities: list[int] | None


def privileges(container: Container, spec: PodSpec) -> Privileges:
    """The container's fields win over the pod's."""
    pod: Json = spec.security_context or {}
    own: Json = container.security_context or {}
    uid = own.get("runAsUser", pod.get("runAsUser"))
    gid = own.get("runAsGroup", pod.get("runAsGroup"))
    groups = [*(pod.get("supplementalGroups") or []), *([pod["fsGroup"]] if pod.get("fsGroup") is not None else [])]
    if uid is not None and gid is None:
        gid = 0
    wants_groups = groups or uid is not None
    return Privileges(uid, gid, groups if wants_groups else None, _capabilities(own))


def _capabilities(own: Json) -> list[int] | None:
    if own.get("privileged"):
        return None
    change: Json = own.get("capabilities") or {}
    added = {_plain(name) for name in change.get("add") or []}
    dropped = {_plain(name) for name in change.get("drop") or []}
    base = set() if "ALL" in dropped else set(DEFAULT) - dropped
    if "ALL" in added:
        base = set(CAPABILITIES) - dropped
    return sorted(CAPABILITIES[name] for name in base | added if name in CAPABILITIES)


def _plain(name: str) -> str:
    return str(name).upper().removeprefix("CAP_")
