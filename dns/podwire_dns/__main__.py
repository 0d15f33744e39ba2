"""`python -m podwire_dns --corefile FILE (--api ADDRESS | --objects FILE) --listen IP:PORT`: the cluster's name server.

With --objects it serves a file of objects (YAML or JSON), no API server needed. Exit status 2 with one line for bad input.
Order to read: main, serve, follow.
"""

from __future__ import annotations

import argparse
import functools
import glob
import logging
import os
import random
import signal
import sys
import time

import trio

from podwire_core import manifest, objects, rpc
from podwire_dns.corefile import DEFAULT_PORT, CorefileError, ServerBlock, parse
from podwire_dns.kubeindex import KubeIndex
from podwire_dns.plugin import Context
from podwire_dns.server import Server, bind

log = logging.getLogger("podwire_dns")
Sockets = dict[int, tuple[trio.socket.SocketType, trio.SocketListener]]  # by port


def main() -> int:
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s", stream=sys.stdout)
    try:
        index = KubeIndex()
        synced = trio.Event()
        context = Context(index, synced.is_set, time.monotonic, random.Random(), (args.host, args.port), args.corefile)
        server = Server(_read(context), context)
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
    bound = {port: bind(args.host, args.port if port == DEFAULT_PORT else port) for port in server.ports | {DEFAULT_PORT}}
    status = 0
    async with trio.open_nursery() as nursery:

        def listen(port: int) -> None:
            udp, tcp = bound[port]
            nursery.start_soon(server.serve_udp, udp, port)
            nursery.start_soon(trio.serve_listeners, functools.partial(server.serve_connection, port=port), [tcp])

        def halt(message: str) -> None:
            nonlocal status
            status = _fail(message)
            nursery.cancel_scope.cancel()

        def reload() -> None:
            for port in _reload(server, context, args.host, bound):
                listen(port)

        context.halt, context.reload = halt, reload
        nursery.start_soon(server.run)
        for port in bound:
            listen(port)
        if args.api:
            nursery.start_soon(follow, args.api, context.index, synced)
        log.info("listening on %s", args.listen)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                await trio.sleep(context.lameduck)
                nursery.cancel_scope.cancel()
    return status


def _read(context: Context) -> list[ServerBlock]:
    """The Corefile with the files that it imports, whose paths go to `context.sources`."""
    sources = [context.corefile]

    def imported(pattern: str, file: str) -> list[tuple[str, str]]:
        paths = sorted(p for p in glob.glob(os.path.join(os.path.dirname(file), pattern)) if os.path.isfile(p))
        sources.extend(paths)
        return [(path, _text(path)) for path in paths]

    blocks = parse(_text(context.corefile), context.corefile, os.environ, imported)
    context.sources = sources
    return blocks


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _reload(server: Server, context: Context, host: str, bound: Sockets) -> set[int]:
    """Take the Corefile as it is now; returns the ports that it wants and that were not bound before. A wrong one, or one whose
    ports are taken, leaves the running configuration in force."""
    failed = context.metrics.counter("coredns_reload_failed", "Counter of the number of failed reload attempts.")
    try:
        blocks = _read(context)
        new = {port for block in blocks for _, port in block.zones} - set(bound)
        sockets = {port: bind(host, port) for port in new}
        server.configure(blocks)
        bound.update(sockets)
        log.info("reloaded %s", context.corefile)
        return new
    except (CorefileError, OSError, UnicodeDecodeError) as error:
        failed.inc()
        log.error("reload: %s; the running configuration stays", error)
        return set()


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
