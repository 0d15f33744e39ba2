"""What one container is made of: its files, its environment, and the shim's Spec for running it or something beside it.

Order to read: PodFiles (where things are), managed files, environment, specs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from podwire_core.objects import Container, PodSpec
from podwire_nodeagent.kubelet import env, resolvconf, security, userns, volumes
from podwire_nodeagent.kubelet.env import Context
from podwire_nodeagent.kubelet.images import Program
from podwire_nodeagent.kubelet.node import BUSYBOX_AT, Node
from podwire_nodeagent.kubelet.records import PodRecord, Record
from podwire_nodeagent.kubelet.runtime import Spec
from podwire_nodeagent.kubelet.volumes import Mount, Volumes


class PodFiles:
    """The layout of run_dir/pods/<uid>."""

    def __init__(self, pods_dir: Path, uid: str) -> None:
        self.root = pods_dir / uid
        self.state = self.root / "state.json"
        self.etc = self.root / "etc"
        self.volumes = self.root / "volumes"

    def container(self, name: str, attempt: int) -> Path:
        return self.root / "containers" / name / str(attempt)

    def log(self, name: str, attempt: int) -> Path:
        return self.root / "logs" / name / f"{attempt}.log"

    def scratch(self) -> Path:
        """The mount point of transient roots; mounts are private, so all may share it."""
        path = self.root / "scratch"
        path.mkdir(exist_ok=True)
        return path


# --- managed files --------------------------------


def write_etc(node: Node, files: PodFiles, record: PodRecord, spec: PodSpec) -> list[str]:
    """resolv.conf, hosts and hostname of the pod; returns warnings. Raises ValueError for a host name that cannot be."""
    config, meta = node.config, record.pod["metadata"]
    namespace = meta.get("namespace", "default")
    name, fqdn = resolvconf.host_names(spec, meta["name"], namespace, config.node_name, config.cluster_domain)
    machine = _text(config.machine_resolv_conf)
    resolv, warnings = resolvconf.resolv_conf(spec, namespace, config.cluster_domain, config.dns_ip, machine)
    if spec.host_network:
        hosts = resolvconf.host_network_hosts(_text(config.machine_hosts), spec.host_aliases)
    else:
        hosts = resolvconf.hosts(record.sandbox.ips, name.partition(".")[0], fqdn, spec.host_aliases)
    files.etc.mkdir(parents=True, exist_ok=True)
    for file, text in (("resolv.conf", resolv), ("hosts", hosts), ("hostname", f"{name}\n")):
        (files.etc / file).write_text(text)
    return warnings


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _etc_mounts(files: PodFiles, container: Container) -> list[Mount]:
    taken = {mount.mount_path for mount in container.volume_mounts or []}
    targets = {"/etc/resolv.conf": "resolv.conf", "/etc/hosts": "hosts", "/etc/hostname": "hostname"}
    return [Mount(str(files.etc / file), target) for target, file in targets.items() if target not in taken]


# --- environment --------------------------------


def context(node: Node, record: PodRecord, spec: PodSpec) -> Context:
    config = node.config
    return Context(
        record.pod,
        spec,
        config.internal_ip,
        record.sandbox.ips,
        config.node_name,
        config.allocatable,
        node.services,
        node.config_map,
        node.secret,
        [],
    )


def base_environment(hostname: str, uid: int | None, busybox: bool, tty: bool) -> dict[str, str]:
    """What an image and its runtime give."""
    path = f"{BUSYBOX_AT}:{env.PATH}" if busybox else env.PATH
    result = {"PATH": path, "HOSTNAME": hostname, "HOME": "/root" if not uid else "/"}
    return result | ({"TERM": "xterm"} if tty else {})


# --- specs --------------------------------


def container_spec(
    node: Node,
    files: PodFiles,
    record: PodRecord,
    spec: PodSpec,
    container: Container,
    program: Program,
    vols: Volumes,
    mode: str = "container",
) -> Spec:
    """A program in the container's own world: as the container itself, or (`transient`) beside it. Raises ConfigError."""
    privileges = security.privileges(container, spec)
    hostname = (files.etc / "hostname").read_text().strip()
    own = env.compose(container, context(node, record, spec))
    environment = base_environment(hostname, privileges.uid, program.busybox, container.tty) | own
    mounts = [*_etc_mounts(files, container), *volumes.mounts(container, vols, environment)]
    mounts = [*(Mount(path, path) for path in program.binds), *mounts]
    applets = node.busybox_dir() if program.busybox else None
    if applets is not None:
        mounts.append(Mount(str(applets), BUSYBOX_AT, ro=True))
    return Spec(
        mode=mode,
        argv=env.expand_all(program.argv, own) or [],
        env=environment,
        netns=record.sandbox.netns,
        hostname=hostname,
        root=str(files.scratch()),
        mounts=mounts,
        cwd=container.working_dir,
        uid=privileges.uid,
        gid=privileges.gid,
        groups=privileges.groups,
        capabilities=privileges.capabilities,
        in_userns=userns.inside(),
        tty=container.tty,
        stdin=container.stdin,
    )


def prepare_directory(files: PodFiles, container: Container, record: Record, spec: Spec) -> Path:
    """The directories of a new run, and its termination log; runs older than the previous one are removed."""
    directory, log = files.container(record.name, record.attempt), files.log(record.name, record.attempt)
    directory.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    message = directory / "termination-log"
    message.touch()
    message.chmod(0o666)
    spec.mounts = [*spec.mounts, Mount(str(message), container.termination_message_path or "/dev/termination-log")]
    spec.log = str(log)
    forget(files, record.name, record.attempt - 2)
    return directory


def forget(files: PodFiles, name: str, attempt: int) -> None:
    if attempt > 0:
        shutil.rmtree(files.container(name, attempt), ignore_errors=True)
        for path in (files.log(name, attempt), files.log(name, attempt).with_suffix(".log.old")):
            path.unlink(missing_ok=True)


def join_spec(started: Spec, pid: int, argv: list[str], cgroups: list[str]) -> Spec:
    """A command inside a running container, as its own program has it."""
    return Spec(
        mode="join",
        argv=argv,
        env=dict(started.env),
        join=pid,
        cwd=started.cwd,
        uid=started.uid,
        gid=started.gid,
        groups=started.groups,
        capabilities=started.capabilities,
        in_userns=started.in_userns,
        cgroups=cgroups,
    )


def host_spec(node: Node, argv: list[str]) -> Spec:
    """A command in the node's host namespace: the machine's files, the node's network and name, podwire's tools first."""
    config = node.config
    about = {"PODWIRE_DATAPATH": str(config.datapath_socket), "PODWIRE_NODE": config.node_name}
    return machine_spec(argv, config.host_netns, config.node_name, f"{config.tools_dir}:", about)


def machine_spec(argv: list[str], namespace: str, hostname: str, first: str = "", more: dict[str, str] | None = None) -> Spec:
    """A command with the machine's files in a network namespace; `first` is put before PATH, `more` is of the environment."""
    kept = {name: os.environ[name] for name in ("HOME", "TERM", "LANG", "USER", "LC_ALL") if name in os.environ}
    path = first + (os.environ.get("PATH") or env.PATH)
    if "/usr/sbin" not in path:
        path = f"{path}:{env.PATH}"
    return Spec(mode="host", argv=argv, env={**kept, "PATH": path, **(more or {})}, netns=namespace, hostname=hostname)
