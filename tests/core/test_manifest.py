"""Manifests that are right: what YAML 1.2's core schema makes of them. Broken ones: tests/apiserver/test_broken_manifests.py."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_core import manifest
from podwire_core.manifest import Document, ManifestError

HEAD = "apiVersion: v1\nkind: ConfigMap\n"


def value(text: str):
    [document] = manifest.load(HEAD + f"x: {text}\n")
    return document.object["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y", "y"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("2024-05-01", "2024-05-01"),
        ("12:30:45", "12:30:45"),
        ("0x1F", 31),
        ("0o17", 15),
        ("0644", 644),
        ("1_000", "1_000"),
        ("-7", -7),
        ("+7", 7),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1.25.3", "1.25.3"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ('!!int "5"', 5),
        ("<<", "<<"),
        ("=", "="),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
        ("|\n  a\n  b", "a\nb\n"),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_scalars(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_anchors_and_merge_keys():
    text = "base: &b {a: 1, c: [x]}\nmore: &m {d: 4}\nuse: {<<: *b, a: 2}\nboth: {<<: [*b, *m]}\nagain: *b"
    [document] = manifest.load(HEAD + text)
    assert document.object["use"] == {"a": 2, "c": ["x"]}
    assert document.object["both"] == {"a": 1, "c": ["x"], "d": 4}
    assert document.object["again"] == document.object["base"]
    assert document.object["again"] is not document.object["base"]


def test_documents_and_lists_say_where_they_begin():
    items = "- apiVersion: v1\n  kind: Pod\n-\n  {apiVersion: v1, kind: Pod}\n"
    text = f"---\n{HEAD}---\n# nothing\n---\napiVersion: v1\nkind: List\nitems:\n{items}"
    assert [(document.object["kind"], document.where) for document in manifest.load(text, "f.yaml")] == [
        ("ConfigMap", "f.yaml:2"),
        ("Pod", "f.yaml:10"),
        ("Pod", "f.yaml:13"),
    ]
    typed = manifest.load("apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: a}\n")
    assert typed[0].object == {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}
    assert manifest.load("apiVersion: v1\nkind: List\n") == []


def test_json():
    assert manifest.load(b'\n {"apiVersion": "v1",\t"kind": "Pod", "x": [1, 2.5, null]}', "f.json") == [
        Document({"apiVersion": "v1", "kind": "Pod", "x": [1, 2.5, None]}, "f.json:1")
    ]
    flow = manifest.load("{apiVersion: v1, kind: Pod}")  # YAML that begins like JSON
    assert flow[0].object == {"apiVersion": "v1", "kind": "Pod"}


def test_nothing_is_no_objects():
    for text in ("", "\n", "---\n", "# only a comment", "---\n---\n...\n", "\ufeff"):
        assert manifest.load(text.encode()) == []


def test_every_error_of_a_file():
    with pytest.raises(ManifestError) as caught:
        manifest.load("kind: Pod\n---\n5\n---\napiVersion: [v1]\n", "f.yaml")
    assert caught.value.errors == [
        "f.yaml:1: $.apiVersion: missing",
        "f.yaml:3: expected an object (a mapping with apiVersion and kind), got int",
        "f.yaml:5: $.apiVersion: expected str, got array",
        "f.yaml:5: $.kind: missing",
    ]


plain = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
    st.integers(-(2**63), 2**63),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
)
trees = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_what_is_printed_is_read_back(tree):
    obj = {"apiVersion": "v1", "kind": "X", "tree": tree}
    [from_json] = manifest.load(json.dumps(obj))
    assert from_json.object == obj
    try:
        text = yaml.safe_dump({**obj, "tree": json.dumps(tree)}, allow_unicode=True)
    except yaml.YAMLError:
        return
    [from_yaml] = manifest.load(text)
    assert json.loads(from_yaml.object["tree"]) == tree


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text("ab:-[]{}&*!|>'\"#%@,?\n \t<0.~", max_size=60), st.binary(max_size=40)))
def test_whatever_is_read_the_answer_is_objects_or_lines(text):
    try:
        documents = manifest.load(text, "f.yaml")
    except ManifestError as error:
        lines = error.errors
    else:
        lines = []
        assert all(isinstance(document.object, dict) for document in documents)
    assert all(line.startswith("f.yaml") and "\n" not in line for line in lines)


def finite(tree) -> bool:
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    return all(map(finite, tree)) if isinstance(tree, list) else not isinstance(tree, float) or math.isfinite(tree)


@settings(max_examples=100, deadline=None)
@given(st.text("&*ab [],{}:-\n<", max_size=80))
def test_aliases_give_finite_values(text):
    try:
        documents = manifest.load("apiVersion: v1\nkind: X\nx:\n  " + text.replace("\n", "\n  "))
    except ManifestError:
        return
    for document in documents:
        assert finite(document.object)
        json.dumps(document.object)  # no cycles
