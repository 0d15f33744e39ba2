"""The graph that the chains of a table make, and what Linux refuses in it: a loop of jumps, a NAT target where its hook cannot
lead. A change of a graph that was in order is looked at where it leads to something new, so that one Service more costs the
same among ten and among ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from podwire_core import netfilter as nf
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.netfilter.chains import DNAT_OP, GOTO, JUMP, Body, CompiledRule
from podwire_nodeagent.datapath.netfilter.matches import invalid

WORTH_LOOKING: Final = 1000  # chains; where a change reaches more, the whole table is looked at
_NAT_HOOKS: Final = {
    nf.Dnat: ("PREROUTING", "OUTPUT"),
    nf.Snat: ("INPUT", "POSTROUTING"),
    nf.Masquerade: ("POSTROUTING",),
}
Turnover = tuple[Sequence[CompiledRule], Sequence[CompiledRule]]  # of a chain: the rules that came, and those that went


def check_graph(table: str, bodies: Mapping[str, Body]) -> None:
    """No loop of jumps, and no NAT target where its hook cannot lead."""
    jumps = {name: _jumps(body) for name, body in bodies.items()}
    _check_loops(table, jumps)
    if table == "nat":
        _check_hooks(bodies, jumps)


def check_changes(table: str, body: Callable[[str], Body], turnover: Mapping[str, Turnover]) -> bool:
    """`check_graph` for a graph that was in order before these rules came and went: looks only at what the change made reachable.
    True: in order. False: not certain, look at everything."""
    anew: set[str] = set()
    for came, went in turnover.values():
        anew.update(set(_targets(came)).difference(_targets(went)))
    below = _reach(anew, body)
    if below is None:
        return False
    # A loop that is new takes a new jump and comes back to it, so all of it is below new jumps.
    _check_loops(table, {name: [each for each in _jumps(body(name)) if each in below] for name in below})
    return table != "nat" or _hooks_fit(body, below, {name: came for name, (came, _) in turnover.items()})


def _reach(roots: Iterable[str], body: Callable[[str], Body]) -> set[str] | None:
    """The chains that these lead to, themselves included; None if they are too many to be worth it."""
    seen = set(roots)
    pending = list(seen)
    while pending:
        if len(seen) > WORTH_LOOKING:
            return None
        for following in _jumps(body(pending.pop())):
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return seen


def _hooks_fit(body: Callable[[str], Body], below: Iterable[str], came: Mapping[str, Sequence[CompiledRule]]) -> bool:
    """Whether no hook leads to a NAT target that it may not have: those in chains that are reached anew, and new rules."""
    unfit: dict[str, set[str]] = {}
    for name, rules in [*((name, body(name).rules) for name in below), *came.items()]:
        for rule in rules:
            if rule.operation >= DNAT_OP:
                for hook in set(nf.BUILTIN_CHAINS["nat"]).difference(_NAT_HOOKS[type(rule.source.target)]):
                    unfit.setdefault(hook, set()).add(name)
    for hook, wrong in unfit.items():
        led_to = _reach([hook], body)
        if led_to is None or not led_to.isdisjoint(wrong):
            return False
    return True


def _jumps(body: Body) -> list[str]:
    return _targets(body.rules)


def _targets(rules: Iterable[CompiledRule]) -> list[str]:
    return [rule.argument.name for rule in rules if rule.operation in (JUMP, GOTO)]


def _check_loops(table: str, jumps: Mapping[str, list[str]]) -> None:
    done: set[str] = set()
    for root in jumps:
        if root in done:
            continue
        path: dict[str, None] = {root: None}
        pending = [iter(jumps[root])]
        while pending:
            for name in pending[-1]:
                if name in path:
                    raise NetlinkError("ELOOP", f"{table}: chains jump in a loop: {' -> '.join([*path, name])}")
                if name not in done:
                    path[name] = None
                    pending.append(iter(jumps[name]))
                    break
            else:
                pending.pop()
                done.add(path.popitem()[0])


def _check_hooks(bodies: Mapping[str, Body], jumps: Mapping[str, list[str]]) -> None:
    translating = [(name, rule) for name, body in bodies.items() for rule in body.rules if rule.operation >= DNAT_OP]
    translating.reverse()  # so that a chain's first rule is the one that is kept below
    for hook in nf.BUILTIN_CHAINS["nat"]:
        unfit = {name: rule for name, rule in translating if hook not in _NAT_HOOKS[type(rule.source.target)]}
        if unfit:
            _check_hook(hook, unfit, jumps)


def _check_hook(hook: str, unfit: Mapping[str, CompiledRule], jumps: Mapping[str, list[str]]) -> None:
    seen = {hook}
    pending = [hook]
    while pending:
        name = pending.pop()
        if name in unfit:
            where = "" if name == hook else f" (reached from {hook})"
            raise invalid(f"nat: {unfit[name].text()}{where}: not allowed in {hook}")
        for following in jumps[name]:
            if following not in seen:
                seen.add(following)
                pending.append(following)
