"""The container runtime's side of CNI: runs the plugins of a network's configuration for each pod, as libcni does.

Rules it keeps:

- A configuration list runs forward for ADD and CHECK, each plugin getting the one before's result, and backward for DEL with the
  result that ADD left in the cache. ADD that fails is followed by DEL.
- A plugin gets the list's name and version, its own keys, and of `capabilities` only what it asked for, as runtimeConfig.
- What to execute is decided by generators (`Steps`) that start no process; `run` and `run_sync` are the two ways to drive them.
- A failure is a `CniError`, the plugin's own where it gave one.

Order to read: Network (configurations), Attachment, Runtime, driving, install.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from podwire_cni import protocol
from podwire_cni.protocol import CniError, Json

T = TypeVar("T")
TIMEOUT = 60.0  # seconds a plugin may take

# --- configurations --------------------------------


class Network(NamedTuple):
    """A configuration list of net.d; `plugins` as given."""

    name: str
    version: str
    plugins: list[Json]
    disable_check: bool = False
    disable_gc: bool = False

    @classmethod
    def parse(cls, conf: object) -> Network:
        """From a list, or a single plugin's configuration (*.conf)."""
        if not isinstance(conf, dict):
            raise CniError(protocol.DECODING, "a network configuration must be an object")
        name = protocol.check_network_name(conf.get("name"))
        plugins = conf.get("plugins", [conf])
        if not isinstance(plugins, list) or not plugins:
            raise CniError(protocol.INVALID_CONFIG, "plugins: expected a list with at least one plugin")
        for i, plugin in enumerate(plugins):
            if not isinstance(plugin, dict) or not isinstance(plugin.get("type"), str) or not plugin["type"]:
                raise CniError(protocol.INVALID_CONFIG, f"plugins[{i}].type: expected the name of a plugin")
            if not isinstance(plugin.get("capabilities", {}), dict):
                raise CniError(protocol.INVALID_CONFIG, f"plugins[{i}].capabilities: expected an object")
        return cls(name, _version(conf), plugins, _flag(conf, "disableCheck"), _flag(conf, "disableGC"))

    @classmethod
    def load(cls, conf_dir: str | os.PathLike[str]) -> Network:
        """The first configuration of a net.d directory, by file name."""
        found = sorted(p for p in Path(conf_dir).glob("*") if p.suffix in (".conf", ".conflist", ".json"))
        if not found:
            raise CniError(protocol.INVALID_CONFIG, f"no networks found in {conf_dir}")
        try:
            return cls.parse(json.loads(found[0].read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise CniError(protocol.DECODING, f"cannot read {found[0]}", str(error)) from None
        except CniError as error:
            raise CniError(error.code, f"{found[0]}: {error.msg}", error.details) from None


def _version(conf: Json) -> str:
    """The best of `cniVersions` that we know, else `cniVersion`."""
    offered = conf.get("cniVersions")
    known = [v for v in protocol.SUPPORTED if v in offered] if isinstance(offered, list) else []
    return known[-1] if known else protocol.check_version(conf.get("cniVersion"), "ADD")


def _flag(conf: Json, name: str) -> bool:
    """libcni takes booleans and the words for them."""
    value = conf.get(name, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise CniError(protocol.INVALID_CONFIG, f"{name}: expected true or false, got {value!r}")


class Attachment(NamedTuple):
    """One container's connection to the network. `args` become CNI_ARGS, `capabilities` runtimeConfig."""

    container_id: str
    netns: str
    ifname: str = "eth0"
    args: Mapping[str, str] = {}
    capabilities: Mapping[str, Any] = {}

    @classmethod
    def of_pod(cls, container_id: str, netns: str, namespace: str, name: str, uid: str) -> Attachment:
        """With the arguments that kubelets give."""
        pod = {"K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": name, "K8S_POD_UID": uid}
        args = {"IgnoreUnknown": "1", **pod, "K8S_POD_INFRA_CONTAINER_ID": container_id}
        return cls(container_id, netns, args=args)


class Invocation(NamedTuple):
    """A plugin to execute."""

    path: str
    env: dict[str, str]
    stdin: bytes


class Outcome(NamedTuple):
    code: int
    stdout: bytes
    stderr: bytes


Steps = Generator[Invocation, Outcome, T]

# --- the runtime --------------------------------


class Runtime:
    """One network of one node."""

    def __init__(self, network: Network, bin_dirs: Iterable[str | os.PathLike[str]], cache_dir: str | os.PathLike[str]) -> None:
        self.network = network
        self._bin_dirs = [str(each) for each in bin_dirs]
        self._results = Path(cache_dir, "results")

    # --- for an async caller, and for any other

    async def add(self, attachment: Attachment) -> Json:
        """The last plugin's result: interfaces, ips, routes, dns."""
        return await run(self.add_steps(attachment))

    async def delete(self, attachment: Attachment) -> None:
        await run(self.delete_steps(attachment))

    async def check(self, attachment: Attachment) -> None:
        await run(self.check_steps(attachment))

    async def status(self) -> None:
        await run(self.status_steps())

    async def collect(self, valid: Iterable[Attachment]) -> None:
        """GC: what belongs to none of the valid attachments is removed."""
        await run(self.collect_steps(list(valid)))

    # --- what to execute

    def add_steps(self, attachment: Attachment) -> Steps[Json]:
        result: Json | None = None
        try:
            for plugin in self.network.plugins:
                result = yield from self._call("ADD", plugin, attachment, result)
            assert result is not None  # there is at least one plugin
            self._keep(attachment, result)
        except CniError:
            try:
                yield from self.delete_steps(attachment)
            except CniError:
                pass  # the first error is the one that says why
            raise
        return result

    def check_steps(self, attachment: Attachment) -> Steps[None]:
        if self.network.disable_check:
            return
        protocol.check_version(self.network.version, "CHECK")
        result = self.result(attachment)
        if result is None:
            raise CniError(protocol.UNTYPED, f"no result of ADD for {attachment.container_id} {attachment.ifname}")
        for plugin in self.network.plugins:
            yield from self._call("CHECK", plugin, attachment, result)

    def delete_steps(self, attachment: Attachment) -> Steps[None]:
        result = self.result(attachment) if protocol.at_least(self.network.version, "0.4.0") else None
        for plugin in reversed(self.network.plugins):
            yield from self._call("DEL", plugin, attachment, result)
        self._cache_path(attachment).unlink(missing_ok=True)

    def status_steps(self) -> Steps[None]:
        if protocol.at_least(self.network.version, protocol.SINCE["STATUS"]):
            for plugin in self.network.plugins:
                yield from self._call("STATUS", plugin, None, None)

    def collect_steps(self, valid: list[Attachment]) -> Steps[None]:
        """Stale attachments that the cache knows are deleted first; then the plugins look for more. All are tried."""
        if self.network.disable_gc:
            return
        kept = {(a.container_id, a.ifname) for a in valid}
        failures: list[CniError] = []
        stale = [a for a in self.attachments() if (a.container_id, a.ifname) not in kept]
        steps: list[Steps[None]] = [self.delete_steps(attachment) for attachment in stale]
        if protocol.at_least(self.network.version, protocol.SINCE["GC"]):
            extra = {"cni.dev/valid-attachments": [{"containerID": c, "ifname": i} for c, i in sorted(kept)]}
            steps += [_ignore_result(self._call("GC", plugin | extra, None, None)) for plugin in self.network.plugins]
        for each in steps:
            try:
                yield from each
            except CniError as error:
                failures.append(error)
        if failures:
            raise CniError(failures[0].code, "; ".join(str(error) for error in failures))

    def _call(self, command: str, plugin: Json, attachment: Attachment | None, previous: Json | None) -> Steps[Json]:
        """Executes one plugin; its result, {} where it has none to give."""
        conf = {k: v for k, v in plugin.items() if k != "capabilities"}
        conf |= {"name": self.network.name, "cniVersion": self.network.version}
        if previous is not None:
            conf["prevResult"] = previous
        wanted = [name for name, on in plugin.get("capabilities", {}).items() if on is True]
        granted = {name: attachment.capabilities[name] for name in wanted if attachment and name in attachment.capabilities}
        if granted:
            conf["runtimeConfig"] = granted
        path = find_plugin(plugin["type"], self._bin_dirs)
        outcome = yield Invocation(path, self._environment(command, attachment), json.dumps(conf).encode())
        return _result(plugin["type"], command, outcome)

    def _environment(self, command: str, attachment: Attachment | None) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        env |= {"CNI_COMMAND": command, "CNI_PATH": ":".join(self._bin_dirs)}
        if attachment is not None:
            args = ";".join(f"{key}={value}" for key, value in attachment.args.items())
            env |= {"CNI_CONTAINERID": attachment.container_id, "CNI_NETNS": attachment.netns}
            env |= {"CNI_IFNAME": attachment.ifname, "CNI_ARGS": args}
        return env

    # --- the cache

    def result(self, attachment: Attachment) -> Json | None:
        """What ADD returned, None if there was none."""
        entry = _read_entry(self._cache_path(attachment))
        return entry["result"] if entry is not None else None

    def attachments(self) -> list[Attachment]:
        """All that were added and not deleted, of this network."""
        entries = (_read_entry(path) for path in sorted(self._results.glob(f"{self.network.name}-*")))
        return [
            Attachment(e["containerId"], e["netns"], e["ifName"], dict(e["cniArgs"]), e["capabilityArgs"])
            for e in entries
            if e is not None and e["networkName"] == self.network.name
        ]

    def _keep(self, attachment: Attachment, result: Json) -> None:
        path = self._cache_path(attachment)
        draft = path.with_name(f".{path.name}")  # which `attachments` does not see
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._cache_entry(attachment, result)))
            draft.replace(path)
        except OSError as error:
            raise CniError(protocol.IO_FAILURE, "cannot keep the result of ADD", str(error)) from None

    def _cache_path(self, attachment: Attachment) -> Path:
        protocol.check_container_id(attachment.container_id)
        protocol.check_interface_name(attachment.ifname)
        return self._results / f"{self.network.name}-{attachment.container_id}-{attachment.ifname}"

    def _cache_entry(self, attachment: Attachment, result: Json) -> Json:
        conf = {"name": self.network.name, "cniVersion": self.network.version, "plugins": self.network.plugins}
        return {
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "config": base64.b64encode(json.dumps(conf).encode()).decode(),
            "ifName": attachment.ifname,
            "networkName": self.network.name,
            "netns": attachment.netns,
            "cniArgs": [list(pair) for pair in attachment.args.items()],
            "capabilityArgs": dict(attachment.capabilities),
            "result": result,
        }


def _read_entry(path: Path) -> Json | None:
    """An entry that a crash cut short counts as none."""
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.get("kind") == "cniCacheV1" else None


def _ignore_result(steps: Steps[Json]) -> Steps[None]:
    yield from steps


def find_plugin(kind: str, bin_dirs: Iterable[str]) -> str:
    if "/" in kind:
        raise CniError(protocol.INVALID_CONFIG, f"invalid plugin name: {kind}")
    for each in bin_dirs:
        path = os.path.join(each, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise CniError(protocol.INVALID_CONFIG, f"failed to find plugin {kind!r} in path {list(bin_dirs)}")


def _result(kind: str, command: str, outcome: Outcome) -> Json:
    text = outcome.stdout.strip()
    try:
        answer = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise CniError(
            protocol.DECODING, f"plugin {kind} answered {command} with something else than JSON", _tail(outcome.stdout)
        )
    if outcome.code != 0:
        default = f"plugin {kind} failed with status {outcome.code} and no error message"
        code = answer.get("code")
        message, details = str(answer.get("msg") or default), str(answer.get("details") or _tail(outcome.stderr))
        raise CniError(code if type(code) is int else protocol.UNTYPED, message, details)
    if command == "ADD" and not answer:
        raise CniError(protocol.DECODING, f"plugin {kind} gave no result")
    return answer


def _tail(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-500:]


# --- driving --------------------------------


def run_sync(steps: Steps[T], timeout: float = TIMEOUT) -> T:
    """Executes the plugins one after the other, blocking."""
    try:
        invocation = next(steps)
        while True:
            invocation = steps.send(_execute(invocation, timeout))
    except StopIteration as end:
        result: T = end.value
        return result


def _execute(invocation: Invocation, timeout: float) -> Outcome:
    try:
        done = subprocess.run(
            [invocation.path], input=invocation.stdin, env=invocation.env, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return _late(invocation, timeout)
    except OSError as error:
        return Outcome(1, b"", f"cannot execute {invocation.path}: {error}".encode())
    return Outcome(done.returncode, done.stdout, done.stderr)


async def run(steps: Steps[T], timeout: float = TIMEOUT) -> T:
    """The same under trio. A cancelled call is not cut in two: a plugin that was started ends first."""
    try:
        invocation = next(steps)
        while True:
            with trio.CancelScope(shield=True):
                outcome = await _execute_async(invocation, timeout)
            invocation = steps.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result


async def _execute_async(invocation: Invocation, timeout: float) -> Outcome:
    try:
        with trio.move_on_after(timeout):
            done = await trio.run_process(
                [invocation.path],
                stdin=invocation.stdin,
                env=invocation.env,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            return Outcome(done.returncode, done.stdout, done.stderr)
    except OSError as error:
        return Outcome(1, b"", f"cannot execute {invocation.path}: {error}".encode())
    return _late(invocation, timeout)


def _late(invocation: Invocation, timeout: float) -> Outcome:
    return Outcome(1, b"", f"{invocation.path} did not end within {timeout:g} s".encode())


# --- our own plugin --------------------------------


def install(bin_dir: str | os.PathLike[str]) -> Path:
    """Writes the executable `podwire` of this installation: the interpreter without site packages (a third of its start-up), with
    the few directories that the plugin imports from."""
    import msgspec

    import podwire_core

    modules = (podwire_core.__file__, __file__, msgspec.__file__)
    paths = list(dict.fromkeys(str(Path(str(file)).resolve().parent.parent) for file in modules))
    script = Path(bin_dir, "podwire")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        f"#!{sys.executable} -IS\nimport sys\n\nsys.path[:0] = {paths!r}\n"
        "from podwire_cni.plugin import main\n\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return script
