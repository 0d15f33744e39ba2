"""Selectors and quantities against what Kubernetes' documentation says of them."""

import pytest

from podwire_core import quantity, selectors


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (None, {"a": "b"}, False),
        ({}, {}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "x"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_label_selectors(selector, labels, expected):
    assert selectors.matches(selector, labels) is expected


def test_an_unknown_operator_is_named():
    with pytest.raises(ValueError, match="unknown operator 'Near'"):
        selectors.matches({"matchExpressions": [{"key": "a", "operator": "Near"}]}, {})


def test_an_empty_map_selects_nothing():
    assert not selectors.matches_map({}, {"a": "b"})
    assert selectors.matches_map({"a": "b"}, {"a": "b"})


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("app=web", {"app": "web"}, True),
        ("app==web,tier!=db", {"app": "web"}, True),
        ("app!=web", {"app": "web"}, False),
        ("app in (web, api),!old", {"app": "api"}, True),
        ("app notin (web)", {"app": "web"}, False),
        ("app", {"app": "x"}, True),
        ("!app", {"app": "x"}, False),
        ("weight>3", {"weight": "5"}, True),
        ("", {}, True),
    ],
)
def test_selectors_as_text(text, labels, expected):
    assert selectors.satisfies(selectors.parse(text), labels) is expected


@pytest.mark.parametrize("text", ["=", "a=b=c", "a in (b", ",", "a b"])
def test_bad_text_is_refused(text):
    with pytest.raises(ValueError, match="selector"):
        selectors.parse(text)


@pytest.mark.parametrize(
    ("text", "value", "milli"), [("250m", 1, 250), ("64Mi", 64 << 20, 64000 << 20), (2, 2, 2000), ("1e3", 1000, 10**6)]
)
def test_quantities(text, value, milli):
    assert (quantity.value(text), quantity.milli(text)) == (value, milli)


@pytest.mark.parametrize("text", ["", "5x", "Mi", "1 2", "--1"])
def test_bad_quantities(text):
    with pytest.raises(ValueError, match="not a quantity"):
        quantity.parse(text)
