"""apply: manifests in, kubectl's lines out. Nothing is stored unless everything can be."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from podwire.cli.get import prefix_of
from podwire.cli.options import output_option, print_json, session_command
from podwire.cli.session import Session, warn
from podwire.paths import ClusterError
from podwire_core.errors import ApiError
from podwire_core.objects import Json

if TYPE_CHECKING:
    from podwire_core.manifest import Document

SUFFIXES = (".yaml", ".yml", ".json")


class Placed(Struct):
    """An object and where it was written."""

    object: Json
    where: str


file_option = click.option(
    "-f", "--filename", "files", multiple=True, required=True, metavar="FILE|DIR|-", help="Manifests; - is stdin."
)


@click.command()
@file_option
@click.option("-R", "--recursive", is_flag=True, help="Directories with all below them.")
@click.option("-n", "--namespace", metavar="NS", help="Namespace of objects that don't say one.")
@click.option("--dry-run", is_flag=True, help="Check everything, store nothing.")
@output_option()
@session_command
def apply(
    session: Session, files: tuple[str, ...], recursive: bool, namespace: str | None, dry_run: bool, output: str | None
) -> None:
    """Create or change objects from manifests, all or nothing."""
    placed = read_all(files, recursive)
    if namespace:
        for each in placed:
            each.object.setdefault("metadata", {}).setdefault("namespace", namespace)
    try:
        done = session.api.apply_many([each.object for each in placed], dry_run)
    except ApiError as error:
        raise located(error, placed) from None
    warned: set[str] = set()
    for each, result in zip(placed, done, strict=True):
        for warning in result.warnings:
            text = f"{each.where}: {warning}"
            if text not in warned:
                warned.add(text)
                warn(text)
    if output == "json":
        print_json({"apiVersion": "v1", "kind": "List", "items": [result.object for result in done]})
        return
    for result in done:
        click.echo(f"{kubectl_name(session, result.object)} {result.what}{' (dry run)' if dry_run else ''}")


def kubectl_name(session: Session, obj: Json) -> str:
    """ "deployment.apps/web" """
    group = obj["apiVersion"].rpartition("/")[0]
    info = next((info for info in session.resources if info.kind == obj["kind"] and info.group == group), None)
    prefix = prefix_of(info) if info else f"{obj['kind'].lower()}{'.' + group if group else ''}/"
    return f"{prefix}{obj['metadata']['name']}"


def located(error: ApiError, placed: list[Placed]) -> ClusterError:
    """The server counts objects from 0 ("[3].spec.ports"); the user knows files and lines."""
    lines = []
    for cause in error.causes:
        found = re.match(r"\$?\[(\d+)\](.*)", cause.field, re.DOTALL)
        if found and int(found[1]) < len(placed):
            path = found[2].strip(": ") or "$"
            lines.append(f"{placed[int(found[1])].where}: {path if path.startswith('$') else '$' + path}: {cause.message}")
        else:
            lines.append(": ".join(filter(None, (cause.field, cause.message))))
    if not lines:
        return ClusterError(error.message, 2 if error.code in (400, 404, 413, 422) else 1)
    return ClusterError("\npodwire: ".join(lines), 2 if error.code in (400, 404, 413, 422) else 1)


def read_all(files: tuple[str, ...], recursive: bool = False) -> list[Placed]:
    """All objects of all files, in order; Lists are taken apart. Raises ClusterError (exit status 2)."""
    placed = [each for file in files for path in _paths(file, recursive) for each in _read(path)]
    if not placed:
        raise ClusterError(f"no objects in {', '.join(files)}", 2)
    return placed


def _paths(file: str, recursive: bool) -> list[str]:
    if file == "-" or not Path(file).is_dir():
        return [file]
    found = Path(file).rglob("*") if recursive else Path(file).iterdir()
    names = sorted(str(path) for path in found if path.suffix in SUFFIXES and path.is_file())
    if not names:
        raise ClusterError(f"{file}: no {', '.join(SUFFIXES)} files in this directory", 2)
    return names


def _read(path: str) -> list[Placed]:
    from podwire_core import manifest

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}", 2) from None
    name = "stdin" if path == "-" else path
    try:
        documents: list[Document] = manifest.load(data, name)
    except manifest.ManifestError as error:
        raise ClusterError("\npodwire: ".join(error.errors), 2) from None
    return [Placed(document.object, document.where) for document in documents]
