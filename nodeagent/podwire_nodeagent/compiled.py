"""The datapath compiled by mypyc: an optional build of the very same source, and how a process comes to run it.

`scripts/compile` makes a folder <environment>/podwire-compiled/<digest>: a copy of the package `datapath`, with the extension
modules beside their sources. The package's `__init__` asks here and puts that folder first in its path, so that every module of
the datapath is taken from it: the extension where there is one, else the source.

Rules: the digest covers all the sources and the interpreter, so that a build of other sources is never taken; nothing outside the
package knows which of the two runs; without a build, the interpreter runs the sources. PODWIRE_COMPILED=off says never,
=require that a process without a build must not start.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "datapath"
BUILDS = Path(sys.prefix) / "podwire-compiled"
WISHES = ("auto", "off", "require")


def digest() -> str:
    """Of the datapath's sources and of what an extension module must fit."""
    found = hashlib.sha256(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for path in sorted(SOURCES.rglob("*.py")):
        found.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def build() -> Path | None:
    """The folder whose modules to run in place of the sources. ImportError if one is required and there is none."""
    wish = os.environ.get("PODWIRE_COMPILED", "auto")
    if wish not in WISHES:
        raise ImportError(f"PODWIRE_COMPILED={wish}: it is one of {', '.join(WISHES)}")
    if wish == "off" or (wish == "auto" and not BUILDS.is_dir()):
        return None
    found = BUILDS / digest()
    if (found / "datapath").is_dir():
        return found
    if wish == "require":
        raise ImportError("PODWIRE_COMPILED=require, but the datapath's sources are not compiled: run scripts/compile")
    return None
