"""kubectl's JSONPath, with the examples of its documentation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.cli.jsonpath import columns, render, sort_key
from podwire.paths import ClusterError

DATA = {
    "kind": "List",
    "items": [
        {
            "kind": "None",
            "metadata": {"name": "127.0.0.1", "labels": {"kubernetes.io/hostname": "127.0.0.1"}},
            "status": {"ready": True},
        },
        {"kind": "None", "metadata": {"name": "127.0.0.2"}, "status": {"capacity": {"cpu": 8}}},
    ],
    "users": [{"name": "myself", "user": {}}, {"name": "e2e", "user": {"username": "admin", "password": "secret"}}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("kind is {.kind}", "kind is List"),
        ("{.items[*].metadata.name}", "127.0.0.1 127.0.0.2"),
        ("{$.items[0].metadata.name}", "127.0.0.1"),
        ("{.items[-1].metadata.name}", "127.0.0.2"),
        ('{.users[?(@.name=="e2e")].user.password}', "secret"),
        ("{.users[?(@.user.username)].name}", "e2e"),
        (".items[?(@.status.capacity.cpu>=8)].metadata.name", "127.0.0.2"),
        ('{range .items[*]}[{.metadata.name}]{"\\n"}{end}', "[127.0.0.1]\n[127.0.0.2]\n"),
        ("{.items[0].metadata.labels.kubernetes\\.io/hostname}", "127.0.0.1"),
        ("{.items[0].metadata.labels['kubernetes.io/hostname']}", "127.0.0.1"),
        ("{.items[0:1].metadata.name}", "127.0.0.1"),
        ("{.items[0].status}", '{"ready":true}'),
        ("{.missing.field}{.items[9]}", ""),
        ("{.kind[0]}", ""),
    ],
)
def test_documented_examples(template, text):
    assert render(template, DATA) == text


@pytest.mark.parametrize("template", ["{.items", "{end}", "{range .items[*]}x", "{.a[b]}", "{.a[?(b)]}", "{.a..b}"])
def test_a_wrong_template_is_one_line(template):
    with pytest.raises(ClusterError) as caught:
        render(template, DATA)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="{}[].*?()@\"'\\=ab0:-$ nrage", max_size=40))
def test_any_text_is_rendered_or_refused(template):
    try:
        render(template, DATA)
    except ClusterError:
        pass


def test_sorting_by_a_field():
    objects = [{"a": 10}, {"a": 9}, {"b": 1}, {"a": "x"}, {"a": "w"}]
    assert sorted(objects, key=sort_key(".a")) == [{"b": 1}, {"a": 9}, {"a": 10}, {"a": "w"}, {"a": "x"}]
    for wrong in ("", "a{.b}", "{.a}{.b}"):
        with pytest.raises(ClusterError, match="one path"):
            sort_key(wrong)


def test_custom_columns():
    assert columns("NAME:.metadata.name,IP:.status.podIP") == [("NAME", ".metadata.name"), ("IP", ".status.podIP")]
    for wrong in ("NAME", "NAME:", ":.a", "A:.b,,C:.d"):
        with pytest.raises(ClusterError, match="is not TITLE:PATH"):
            columns(wrong)
