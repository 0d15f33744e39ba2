"""Selectors as text against the same selectors as objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from podwire_apiserver.selections import compile_filter
from podwire_core import selectors
from podwire_core.kinds import Catalogue

POD = Catalogue().find("Pod")
NODE = Catalogue().find("Node")

keys, values = st.sampled_from(["app", "a.b/tier", "in", "x_y"]), st.sampled_from(["", "web", "db", "in", "notin"])
some = st.lists(values.filter(bool), min_size=1, max_size=3, unique=True)
terms = st.one_of(
    st.tuples(keys, st.just("In"), some),
    st.tuples(keys, st.just("NotIn"), some),
    st.tuples(keys, st.just("Exists"), st.just([])),
    st.tuples(keys, st.just("DoesNotExist"), st.just([])),
)
labels = st.dictionaries(keys, values, max_size=4)
blank = st.sampled_from(["", " ", "  "])


def written(term, space: str) -> str:
    key, operator, chosen = term
    if operator in ("Exists", "DoesNotExist"):
        return f"{'!' if operator == 'DoesNotExist' else ''}{space}{key}"
    if len(chosen) == 1 and space:
        return f"{key}{space}{'=' if operator == 'In' else '!='}{space}{chosen[0]}"
    return f"{key} {operator.lower()} ({space}{f',{space}'.join(chosen)}{space})"


@given(st.lists(terms, max_size=3), labels, blank)
def test_text_and_object_select_the_same(requirements, have, space):
    text = f",{space}".join(written(term, space) for term in requirements)
    as_object = {"matchExpressions": [{"key": k, "operator": o, "values": v} for k, o, v in requirements]}
    wanted = compile_filter(POD, "", text, "")
    assert wanted.matches({"metadata": {"labels": have}}) is selectors.matches(as_object, have)


@given(st.text("ab=!,() in", max_size=12), labels)
def test_any_text_is_a_selector_or_a_value_error(text, have):
    try:
        requirements = selectors.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert selectors.satisfies(requirements, have) in (True, False)


def test_fields_have_the_text_that_kubernetes_gives_them():
    pod = {"metadata": {"name": "p"}, "spec": {"hostNetwork": True}, "status": {}}
    assert compile_filter(POD, "", "", "spec.hostNetwork=true").matches(pod)
    assert compile_filter(POD, "", "", "spec.nodeName=").matches(pod)
    assert compile_filter(POD, "", "", "status.phase!=Running,metadata.name==p").matches(pod)
    assert not compile_filter(POD, "", "", "spec.nodeName!=").matches(pod)
    assert compile_filter(NODE, "", "", "spec.unschedulable=false").matches({"metadata": {}, "spec": {}})


def test_a_namespace_means_nothing_for_a_kind_without():
    assert compile_filter(NODE, "default", "", "").matches({"metadata": {"name": "n"}})
