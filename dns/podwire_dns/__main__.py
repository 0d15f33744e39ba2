"""`python -m podwire_dns --corefile FILE (--api ADDRESS | --objects FILE) --listen IP:PORT`: the cluster's name server.

With --objects it serves a file of objects (YAML or JSON), no API server needed. Exit status 2 with one line for bad input.
Order to read: main, serve, follow.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time

import trio

from podwire_core import manifest, objects, rpc
from podwire_dns.corefile import CorefileError, ServerBlock, parse
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.plugin import Context
from podwire_dns.server import Server, bind

log = logging.getLogger("podwire_dns")


def main() -> int:
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s", stream=sys.stdout)
    try:
        index = KubeIndex()
        synced = trio.Event()
        context = Context(index, synced.is_set, time.monotonic, random.Random(), (args.host, args.port), args.corefile)
        server = Server(_read(args.corefile), context)
        if args.objects:
            _load(index, args.objects)
            synced.set()
        return trio.run(serve, server, context, args, synced)
    except CorefileError as error:
        return _fail(str(error))
    except manifest.ManifestError as error:
        return _fail(str(error))
    except objects.DecodeError as error:
        return _fail(f"{args.objects}: {error}")
    except OSError as error:
        return _fail(f"{error.filename or args.listen}: {error.strerror}")


async def serve(server: Server, context: Context, args: argparse.Namespace, synced: trio.Event) -> int:
    """Until SIGTERM, or until a plugin halts the server; returns the exit status."""
    udp, tcp = bind(args.host, args.port)
    status = 0
    async with trio.open_nursery() as nursery:

        def halt(message: str) -> None:
            nonlocal status
            status = _fail(message)
            nursery.cancel_scope.cancel()

        context.halt, context.reload = halt, lambda: _reload(server, args.corefile)
        nursery.start_soon(server.run)
        nursery.start_soon(server.serve_udp, udp)
        nursery.start_soon(trio.serve_listeners, server.serve_connection, [tcp])
        if args.api:
            nursery.start_soon(follow, args.api, context.index, synced)
        log.info("listening on %s", args.listen)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                await trio.sleep(context.lameduck)
                nursery.cancel_scope.cancel()
    return status


def _read(path: str) -> list[ServerBlock]:
    with open(path, encoding="utf-8") as file:
        return parse(file.read(), path, os.environ)


def _reload(server: Server, path: str) -> None:
    """A wrong file leaves the running configuration in force."""
    try:
        server.configure(_read(path))
        log.info("reloaded %s", path)
    except (CorefileError, OSError) as error:
        log.error("reload: %s; the running configuration stays", error)


async def follow(address: str, index: KubeIndex, synced: trio.Event) -> None:
    """Keep the index as the API server's objects are."""
    async with rpc.connect(address) as api, trio.open_nursery() as nursery:
        mirror = rpc.Mirror(api, [rpc.Selection(kind) for kind in KubeIndex.KINDS])
        nursery.start_soon(mirror.run)
        nursery.start_soon(_set_when_synced, mirror, synced)
        async for changes in mirror.changes():
            for change in changes:
                _put(index, change.kind, change.key, change.new)


async def _set_when_synced(mirror: rpc.Mirror, synced: trio.Event) -> None:
    await mirror.synced()
    synced.set()


def _put(index: KubeIndex, kind: str, key: str, obj: objects.Json | None) -> None:
    try:
        index.put(kind, key, obj)
    except objects.DecodeError as error:
        log.warning("%s %s is left out: %s", kind, key, error)


def _load(index: KubeIndex, path: str) -> None:
    with open(path, "rb") as file:
        documents = manifest.load(file.read(), path)
    for document in documents:
        obj = document.object
        index.put(obj["kind"], objects.key_of(obj), obj)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="podwire_dns", description="The cluster's name server, configured by a Corefile.")
    parser.add_argument("--corefile", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--api", help="API server: unix:/path or host:port")
    source.add_argument("--objects", help="a file of objects to serve instead")
    parser.add_argument("--listen", required=True, metavar="IP:PORT")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--listen {args.listen!r}: expected IP:PORT")
    args.host, args.port = host.strip("[]"), int(port)
    return args


def _fail(message: str) -> int:
    print(f"podwire_dns: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
