"""The table of names: what it finds, and what it says when it does not."""

import pytest

from sparsepo_plugin import MASKS, OBJECTIVES, Registry, SparsePOError


@pytest.fixture
def registry():
    return Registry("thing", "sparsepo_tests.nothing")


def test_register_get_names(registry):
    @registry.register("b")
    class B: ...

    @registry.register("a-1_x")
    class A: ...

    assert registry.get("b") is B
    assert registry.get("a-1_x") is A
    assert registry.names() == ["a-1_x", "b"]


def test_registering_the_same_class_twice_is_harmless(registry):
    class A: ...

    assert registry.register("a")(A) is A
    assert registry.register("a")(A) is A


def test_duplicate_name(registry):
    registry.register("a")(type("A", (), {}))
    with pytest.raises(SparsePOError, match="thing 'a' is already registered by"):
        registry.register("a")(type("B", (), {}))


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a.b", "-"])
def test_names_are_plain_words(registry, name):
    with pytest.raises(SparsePOError, match="only letters, digits, '_' and '-' are allowed"):
        registry.register(name)


def test_unknown_name_says_what_exists(registry):
    registry.register("known")(type("A", (), {}))
    with pytest.raises(
        SparsePOError, match=r"unknown thing 'other': registered are known; .*package.module:ClassName"
    ):
        registry.get("other")


@pytest.mark.parametrize(
    "path",
    [
        "no_such_package:A",
        "no_such_package.module:A",
        "collections:NoSuchName",
        "collections:namedtuple",
        ":",
        "collections:",
    ],
)
def test_path_that_cannot_be_imported(registry, path):
    with pytest.raises(SparsePOError, match=f"thing '{path}' cannot be imported"):
        registry.get(path)


def test_path(registry):
    from collections import OrderedDict

    assert registry.get("collections:OrderedDict") is OrderedDict


def test_what_comes_with_the_package():
    assert {"learned", "activation", "uniform", "random"} <= set(MASKS.names())
    assert "sparsepo" in OBJECTIVES.names()


def test_broken_entry_point_is_one_line(tmp_path, monkeypatch):
    """An installed package whose module does not import is named; a traceback would hide it."""
    info = tmp_path / "broken_masks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-masks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsepo.masks]\nbroken = no_such_module:Mask\n")
    assert "broken" not in MASKS
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken" in MASKS
    with pytest.raises(SparsePOError, match=r"mask 'broken' cannot be imported: no such module"):
        MASKS.get("broken")
