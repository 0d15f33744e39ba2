"""Compiled chains (stub)."""


class CompiledRule:
    __slots__ = ("bytes", "packets")
