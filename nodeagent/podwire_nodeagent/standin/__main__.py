"""`python -m podwire_nodeagent.standin --socket PATH`: the stand-in process of a node. Prints "ready" when it serves."""

from __future__ import annotations

import argparse
import resource
import signal

import trio

from podwire_nodeagent.standin.server import serve


async def main(path: str) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, path)
        print("ready", flush=True)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="podwire_nodeagent.standin", description="The stand-ins of a node's pods.")
    parser.add_argument("--socket", required=True, help="unix socket on which the kubelet says what to start and stop")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(main, parser.parse_args().socket)
