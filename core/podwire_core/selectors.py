"""Label selectors in both of Kubernetes' forms: as objects (matchLabels, matchExpressions) and as text ("app=web,tier!=db").

Rules it keeps: pure; labels are plain dicts; None as an object selects nothing, an empty one selects everything (as in the API).
Bad selectors raise ValueError with one line.  Order to read: objects, text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from podwire_core.objects import Json

Labels = Mapping[str, str]
Requirement = tuple[str, str, tuple[str, ...]]  # key, operator, values

_OPERATORS: dict[str, Callable[[str | None, tuple[str, ...]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, values: value is not None,
    "DoesNotExist": lambda value, values: value is None,
    "Gt": lambda value, values: _number(value, values, lambda a, b: a > b),
    "Lt": lambda value, values: _number(value, values, lambda a, b: a < b),
}


def _number(value: str | None, values: tuple[str, ...], compare: Callable[[int, int], bool]) -> bool:
    try:
        return value is not None and compare(int(value), int(values[0]))
    except (ValueError, IndexError):
        return False


def holds(requirement: Json, labels: Labels) -> bool:
    """One of matchExpressions: {key, operator, values}."""
    operator = _OPERATORS.get(requirement.get("operator", ""))
    if operator is None:
        raise ValueError(f"unknown operator {requirement.get('operator')!r}")
    return operator(labels.get(requirement["key"]), tuple(requirement.get("values") or ()))


def matches(selector: Json | None, labels: Labels | None) -> bool:
    """Does a LabelSelector select an object with these labels?"""
    if selector is None:
        return False
    have = labels or {}
    wanted = selector.get("matchLabels") or {}
    if any(have.get(key) != value for key, value in wanted.items()):
        return False
    return all(holds(requirement, have) for requirement in selector.get("matchExpressions") or ())


def matches_map(selector: Labels | None, labels: Labels | None) -> bool:
    """A plain map (Service and ReplicationController selectors, nodeSelector): every pair must be there. Empty: nothing."""
    if not selector:
        return False
    have = labels or {}
    return all(have.get(key) == value for key, value in selector.items())


_TERM = re.compile(
    r"\s*(?:(?P<not>!)\s*(?P<absent>[^\s=!<>,()]+)"
    r"|(?P<key>[^\s=!<>,()]+)\s*(?:(?P<op>==|=|!=|>|<)\s*(?P<value>[^\s=!,()]*)|(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)


def parse(text: str) -> list[Requirement]:
    """ "app=web,tier in (a,b),!old" → requirements, all of which must hold."""
    requirements: list[Requirement] = []
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise ValueError(f"selector {text!r}: cannot read {text[position:]!r}")
        requirements.append(_requirement(term))
        position = term.end()
    return requirements


def _requirement(term: re.Match[str]) -> Requirement:
    if term["not"]:
        return term["absent"], "DoesNotExist", ()
    if term["set"]:
        values = tuple(value.strip() for value in term["values"].split(","))
        return term["key"], "In" if term["set"] == "in" else "NotIn", values
    if term["op"] is None:
        return term["key"], "Exists", ()
    operator = {"=": "In", "==": "In", "!=": "NotIn", ">": "Gt", "<": "Lt"}[term["op"]]
    return term["key"], operator, (term["value"],)


def satisfies(requirements: list[Requirement], labels: Labels | None) -> bool:
    have = labels or {}
    return all(_OPERATORS[operator](have.get(key), values) for key, operator, values in requirements)
