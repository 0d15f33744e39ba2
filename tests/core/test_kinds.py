"""The table of kinds, and definitions added to it."""

from __future__ import annotations

import pytest

from podwire_core.kinds import BUILTIN, RETIRED, Catalogue, custom


def info(word: str, catalogue: Catalogue | None = None):
    return (catalogue or Catalogue()).find(word)


@pytest.mark.parametrize("word", ["Pod", "pod", "pods", "po", "PODS"])
def test_a_kind_is_found_by_all_its_names(word):
    assert info(word).kind == "Pod"


def test_groups_and_short_names():
    assert info("deploy").api_version == info("Deployment.apps").api_version == "apps/v1"
    assert (info("netpol").kind, info("svc").plural, info("crds").namespaced) == ("NetworkPolicy", "services", False)
    assert info("Deployment.example.com") is None


def test_the_table_is_consistent():
    assert len({(one.group, one.kind) for one in BUILTIN}) == len(BUILTIN)
    short = [name for one in BUILTIN for name in one.short_names]
    assert len(set(short)) == len(short)
    acted_on = {one.kind for one in BUILTIN if one.acted_on}
    assert {"Pod", "Service", "Job", "NetworkPolicy", "CustomResourceDefinition"} <= acted_on
    assert not {"Ingress", "Role", "PersistentVolume"} & acted_on
    catalogue = Catalogue()
    for one in BUILTIN:
        assert catalogue.of(one.api_version, one.kind) == catalogue.find(catalogue.name(one)) == one
    for version, kinds in RETIRED.items():
        for kind in kinds:
            assert catalogue.of(version, kind) is None
            assert "Kubernetes has ceased to serve it; use " in catalogue.why_not(version, kind)


def definition(kind="Widget", group="example.com", **spec):
    names = {"kind": kind, "plural": kind.lower() + "s", "shortNames": ["po"]}
    versions = [{"name": "v1beta1", "served": True}, {"name": "v1", "storage": True}, {"name": "v0", "served": False}]
    return {"spec": {"group": group, "names": names, "scope": "Cluster", "versions": versions, **spec}}


def test_definitions_come_and_go():
    catalogue = Catalogue()
    catalogue.define("widgets.example.com", *custom(definition()))
    found = catalogue.find("widget")
    assert (found.api_version, found.namespaced, found.singular) == ("example.com/v1", False, "widget")
    assert catalogue.of("example.com/v1beta1", "Widget") == found
    assert catalogue.of("example.com/v0", "Widget") is None
    assert catalogue.find("po").kind == "Pod"  # the table's names stay
    catalogue.forget("widgets.example.com")
    assert catalogue.find("widget") is None
    catalogue.forget("widgets.example.com")


def test_a_kind_that_is_taken_is_named_with_its_group():
    catalogue = Catalogue()
    catalogue.define("services.serving.knative.dev", *custom(definition("Service", "serving.knative.dev")))
    assert catalogue.find("Service").group == ""
    other = catalogue.find("Service.serving.knative.dev")
    assert catalogue.name(other) == "Service.serving.knative.dev"
    assert catalogue.find("services.serving.knative.dev") == other
