"""A pod's volumes: directories and files below run_dir/pods/<uid>/volumes, and where each container has them mounted.

Rules it keeps: configMap, secret, downwardAPI and projected volumes are written as kubelet's atomic writer does: data in a
directory of its own, the link `..data` switched to it in one step, user-visible names are links through `..data`; so a
program that reads while a ConfigMap changes sees the old or the new, never both. An emptyDir is a directory as long as the
pod lives. What podwire cannot give (claims, CSI, NFS…) is an empty directory, said in a warning.

Order to read: prepare, contents, the atomic writer, mounts, versions.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from msgspec import Struct

from podwire_core import objects
from podwire_core.objects import Container, Json, PodSpec
from podwire_nodeagent.kubelet.config import Getter
from podwire_nodeagent.kubelet.env import ConfigError, Context, data_of, expand, field, resource

Files = dict[str, tuple[bytes, int]]  # path -> (contents, mode)


class Mount(Struct):
    source: str
    target: str
    ro: bool = False


class Volumes(Struct):
    """`paths`: a volume's name to its place on this machine."""

    paths: dict[str, str]
    warnings: list[str]


def prepare(root: Path, context: Context) -> Volumes:
    """Makes, or brings up to date, every volume of the pod. Raises ConfigError (a volume's object is missing) or OSError."""
    result = Volumes({}, [])
    for volume in context.spec.volumes or []:
        name = str(volume.get("name", ""))
        path = root / name
        if "hostPath" in volume:
            result.paths[name] = _host_path(name, volume["hostPath"])
            continue
        path.mkdir(parents=True, exist_ok=True)
        result.paths[name] = str(path)
        if "emptyDir" in volume:
            path.chmod(0o777)
            continue
        try:
            files = contents(volume, context)
        except ConfigError as error:
            raise ConfigError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
        if files is None:
            kind = next((key for key in volume if key != "name"), "no source")
            result.warnings.append(f'volume "{name}" ({kind}) is an empty directory: podwire has no storage')
        else:
            write_atomically(path, files)
    return result


def _host_path(name: str, source: Json) -> str:
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    checks = {"Directory": path.is_dir, "File": path.is_file, "Socket": path.is_socket}
    if not checks.get(kind, path.exists)():
        what = kind.lower() or "file or directory"
        raise ConfigError(f'MountVolume.SetUp failed for volume "{name}" : hostPath type check failed: {path} is not a {what}')
    return str(path)


# --- contents --------------------------------


def contents(volume: Json, context: Context) -> Files | None:
    """The files of a volume made of API objects; None for a volume of another kind."""
    if (source := volume.get("configMap")) is not None:
        return _of_object("configmap", source.get("name", ""), source, context, source.get("defaultMode", 0o644))
    if (source := volume.get("secret")) is not None:
        return _of_object("secret", source.get("secretName", ""), source, context, source.get("defaultMode", 0o644))
    if (source := volume.get("downwardAPI")) is not None:
        return _downward(source, context, source.get("defaultMode", 0o644))
    if (source := volume.get("projected")) is not None:
        files: Files = {}
        for part in source.get("sources") or []:
            files |= _projected(part, context, source.get("defaultMode", 0o644))
        return files
    return None


def _projected(part: Json, context: Context, mode: int) -> Files:
    if (source := part.get("configMap")) is not None:
        return _of_object("configmap", source.get("name", ""), source, context, mode)
    if (source := part.get("secret")) is not None:
        return _of_object("secret", source.get("name", ""), source, context, mode)
    if (source := part.get("downwardAPI")) is not None:
        return _downward(source, context, mode)
    if (source := part.get("serviceAccountToken")) is not None:
        return {str(source.get("path", "token")): (b"podwire: the API of this cluster asks for no token\n", mode)}
    return {}


def _of_object(kind: str, name: str, source: Json, context: Context, mode: int) -> Files:
    obj = (context.config_map if kind == "configmap" else context.secret)(context.namespace, name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise ConfigError(f'{kind} "{name}" not found')
    data = data_of(obj)
    if not source.get("items"):
        return {key: (value, mode) for key, value in data.items()}
    files: Files = {}
    for item in source["items"]:
        if item["key"] in data:
            files[_inside(item["path"])] = (data[item["key"]], item.get("mode", mode))
        elif not source.get("optional"):
            raise ConfigError(f"{kind} references non-existent config key: {item['key']}")
    return files


def _downward(source: Json, context: Context, mode: int) -> Files:
    files: Files = {}
    for item in source.get("items") or []:
        if (reference := item.get("fieldRef")) is not None:
            text = field(str(reference.get("fieldPath", "")), context)
        else:
            ref = objects.decode(objects.ResourceFieldSelector, item.get("resourceFieldRef") or {})
            text = resource(ref.resource, ref.container_name, ref.divisor, context)
        files[_inside(item["path"])] = (text.encode(), item.get("mode", mode))
    return files


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ConfigError(f"path {path!r} must stay inside the volume")
    return path


# --- the atomic writer --------------------------------


def write_atomically(directory: Path, files: Files) -> bool:
    """Makes `directory` show exactly these files. True if anything changed."""
    data = directory / "..data"
    if data.is_symlink() and _same(data, files):
        return False
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=directory))
    fresh.chmod(0o755)
    for path, (content, mode) in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    old = os.readlink(data) if data.is_symlink() else ""
    switch = directory / "..data_tmp"
    switch.unlink(missing_ok=True)
    switch.symlink_to(fresh.name)
    switch.replace(data)
    tops = {path.partition("/")[0] for path in files}
    for top in tops:
        if not (directory / top).is_symlink():
            (directory / top).symlink_to(f"..data/{top}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old:
        shutil.rmtree(directory / old)
    return True


def _same(data: Path, files: Files) -> bool:
    found = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    return found == set(files) and all((data / path).read_bytes() == content for path, (content, _) in files.items())


# --- mounts --------------------------------


def mounts(container: Container, volumes: Volumes, env: dict[str, str]) -> list[Mount]:
    """What the container has mounted, outer paths first. Raises ConfigError for a volume the pod does not have."""
    result = []
    for mount in container.volume_mounts or []:
        source = volumes.paths.get(mount.name)
        if source is None:
            raise ConfigError(f"container {container.name}: volumeMount {mount.name!r} names no volume of the pod")
        if mount.sub_path:
            source = str(Path(source, _inside(expand(mount.sub_path, env))))
            if not os.path.exists(source):
                os.makedirs(source)
        target = mount.mount_path if mount.mount_path.startswith("/") else f"/{mount.mount_path}"
        result.append(Mount(source, target, bool(mount.read_only)))
    return sorted(result, key=lambda mount: mount.target.rstrip("/").count("/"))


def versions(spec: PodSpec, namespace: str, config_map: Getter, secret: Getter) -> tuple[str, ...]:
    """The revisions of all objects the pod's volumes are made of: they differ when a volume is out of date."""
    found = []
    for volume in spec.volumes or []:
        for part in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            for kind, key, get in (
                ("configMap", "name", config_map),
                ("secret", "secretName", secret),
                ("secret", "name", secret),
            ):
                name = (part.get(kind) or {}).get(key)
                obj = get(namespace, name) if name else None
                found.append(str(obj["metadata"].get("resourceVersion", "")) if obj is not None else "")
    return tuple(found)
