"""The reload plugin: reads the Corefile again when it, or a file that it imports, has changed.

    reload [INTERVAL] [JITTER]        (30s and 15s; at least 2s and 1s; a jitter beyond half the interval is half of it)

A wrong Corefile is logged and the running configuration stays. Source: https://coredns.io/plugins/reload/.
"""

from __future__ import annotations

import hashlib

import trio

from podwire_dns.corefile import Directive, seconds
from podwire_dns.plugin import Context, Plugin

INTERVAL, JITTER = 30.0, 15.0
LEAST_INTERVAL, LEAST_JITTER = 2.0, 1.0


class Reload(Plugin):
    name = "reload"
    repeatable = False

    def __init__(self, directive: Directive, zones: tuple[str, ...], context: Context) -> None:
        super().__init__(directive, zones, context)
        directive.no_block()
        times = [seconds(directive, text) for text in directive.args]
        self._interval, jitter = (times + [INTERVAL, JITTER][len(times) :])[:2]
        if len(times) > 2 or self._interval < LEAST_INTERVAL or jitter < LEAST_JITTER:
            raise directive.error("takes an interval of at least 2s and a jitter of at least 1s")
        self._jitter = min(jitter, self._interval / 2)

    async def run(self) -> None:
        before = self._digest()
        info = self.context.metrics.gauge(
            "coredns_reload_version_info", "A metric that tracks the reload version.", "hash", "value"
        )
        info.clear()
        info.set(1, "sha512", before)
        while True:
            await trio.sleep(self._interval + self.context.rng.uniform(0, self._jitter))
            now = self._digest()
            if now and now != before:
                before = now
                self.context.reload()

    def _digest(self) -> str:
        digest = hashlib.sha512()
        try:
            for path in self.context.sources:
                with open(path, "rb") as file:
                    digest.update(file.read())
        except OSError as error:
            self.context.warn(f"reload: {error.filename}: {error.strerror}")
            return ""
        return digest.hexdigest()
