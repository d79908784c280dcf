"""Versions, which of them is current, and what becomes of them."""

from __future__ import annotations

import dataclasses
import os

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet import library as module
from napari_attunet.errors import ModelError
from napari_attunet.header import read_spec, write_header
from napari_attunet.library import PINS, Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.spec import ModelSpec, NetworkSpec

NETWORK = NetworkSpec(features=(2, 3))


def store(library, name, version=1, parent=None, **fields):
    """Put a file on the shelf that has a true header, and hardly any weights."""
    spec = ModelSpec(
        name=name, version=version, parent=parent, network=NETWORK, **fields
    )
    library.folder.mkdir(exist_ok=True)
    weights = {"a": torch.full((3,), version, dtype=torch.bfloat16)}
    safetensors.torch.save_file(weights, library.path_for(spec), write_header(spec))
    return library.path_for(spec)


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """The folder of the bundled models, with one in it."""
    folder = tmp_path / "bundled"
    monkeypatch.setattr(module, "bundled_models", lambda: folder)
    store(Library(folder), "nuclei")
    return folder


@pytest.fixture
def library(tmp_path, bundled):
    """One bundled model, and three versions of one of the user's that came of it."""
    library = Library(tmp_path / "models")
    store(library, "mine", 1, "nuclei@1")
    store(library, "mine", 2, "mine@1")
    store(library, "mine", 10, "mine@1")
    return library


def keys(library):
    return [e.spec.key for e in library.entries()]


def tree(library):
    def told(node):
        return {node.entry.spec.key: [told(child) for child in node.children]}

    return [told(node) for node in library.lineage()]


def without_header(path):
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def files(library):
    return sorted(path.name for path in library.folder.iterdir())


# --- which version is current -----------------------------------------------------


def test_the_newest_version_is_current(library):
    assert library.current("mine").spec.key == "mine@10"
    assert library.find("mine").current
    assert [e.spec.key for e in library.entries() if e.current] == [
        "mine@10",
        "nuclei@1",
    ]
    with pytest.raises(ModelError, match="mine@10"):
        library.current("yours")


def test_a_pin_is_honoured_by_everybody(library):
    assert library.make_current("mine@1").current
    again = Library(library.folder)
    assert again.current("mine").spec.key == "mine@1"
    assert again.find("mine").spec.key == "mine@1"
    assert again.find("mine@10").spec.key == "mine@10"
    assert again.current("nuclei").spec.key == "nuclei@1"


def test_a_newer_version_ends_a_pin(library):
    library.make_current("mine@1")
    store(library, "mine", library.next_version("mine"), "mine@1")
    assert library.current("mine").spec.key == "mine@11"
    library.make_current("mine@2")
    assert library.current("mine").spec.key == "mine@2"


def test_going_forward_again_leaves_no_pin(library):
    library.make_current("mine@1")
    library.make_current("mine@10")
    store(library, "mine", 11)
    assert library.current("mine").spec.key == "mine@11"


def test_a_pin_to_a_bundled_version(library):
    store(library, "nuclei", 2, "nuclei@1")
    assert library.current("nuclei").spec.key == "nuclei@2"
    entry = library.make_current("nuclei@1")
    assert entry.bundled
    assert library.current("nuclei") == entry


def test_pins_of_several_models_stand_beside_each_other(library):
    store(library, "nuclei", 2)
    library.make_current("mine@1")
    library.make_current("nuclei@1")
    library.make_current("mine@2")
    assert library.current("mine").spec.key == "mine@2"
    assert library.current("nuclei").spec.key == "nuclei@1"


@pytest.mark.parametrize("key", ["mine", "mine@3", "yours@1"])
def test_only_a_version_can_be_pinned(library, key):
    with pytest.raises(ModelError, match=r"which version|no model"):
        library.make_current(key)
    assert PINS not in files(library)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 2}', b'{"pins": [{"name": "mine"}]}'],
)
def test_damaged_pins_are_told_and_replaced(library, content):
    (library.folder / PINS).write_bytes(content)
    assert library.current("mine").spec.key == "mine@10"
    assert "newest version" in library.damaged()[library.folder / PINS]
    library.make_current("mine@2")
    assert library.current("mine").spec.key == "mine@2"
    assert library.damaged() == {}


def test_removing_the_pinned_version_brings_back_the_newest(library):
    library.make_current("mine@2")
    library.remove("mine@2")
    assert library.current("mine").spec.key == "mine@10"


def test_a_pin_that_has_ended_does_not_begin_again(library):
    library.make_current("mine@2")
    store(library, "mine", 11)
    library.remove("mine@11")
    assert library.current("mine").spec.key == "mine@10"


@given(st.lists(st.sampled_from(["store", "remove", "pin"]), max_size=8), st.randoms())
@settings(deadline=None, max_examples=40)
def test_the_current_version_is_the_last_stored_or_pinned(
    tmp_path_factory, steps, random
):
    library = Library(tmp_path_factory.mktemp("shelf"))
    present, pin = [], None
    for step in steps:
        if step == "store":
            version = library.next_version("m")
            assert version > max(present, default=0)
            store(library, "m", version, f"m@{version - 1}" if version > 1 else None)
            present.append(version)
            pin = None
        elif present:
            version = random.choice(present)
            if step == "remove":
                library.remove(f"m@{version}")
                present.remove(version)
                pin = None if pin == version else pin
            else:
                library.make_current(f"m@{version}")
                pin = None if version == max(present) else version
        if present:
            wanted = pin or max(present)
            assert library.current("m").spec.version == wanted


# --- copies under another specification ----------------------------------------------


def test_a_duplicate_has_the_same_weights_and_another_header(library):
    old = library.find("mine@2")
    new = library.duplicate("mine@2", "copy")
    assert new == library.find("copy")
    assert new.spec == dataclasses.replace(
        old.spec, name="copy", version=1, parent="mine@2"
    )
    assert without_header(new.path) == without_header(old.path)
    weights = safetensors.torch.load_file(new.path)
    assert torch.equal(weights["a"], torch.full((3,), 2, dtype=torch.bfloat16))


def test_a_duplicate_of_a_real_model_works(library):
    spec = ModelSpec(name="real", network=NETWORK)
    model = Model.fresh(spec)
    save_model(model, library.path_for(spec), half=True)
    entry = library.duplicate("real", "Kerne, größer")
    assert load_model(entry.path).spec == entry.spec
    saved = Model(entry.spec, model.network)
    again = save_model(saved, library.folder.parent / "again.safetensors", half=True)
    assert again.read_bytes() == entry.path.read_bytes()


def test_a_duplicate_of_a_name_is_one_of_its_current_version(library):
    library.make_current("mine@1")
    assert library.duplicate("mine", "copy").spec.parent == "mine@1"
    assert library.duplicate("nuclei", "other").spec.parent == "nuclei@1"


@pytest.mark.parametrize(
    ("name", "message"), [("mine", "already"), ("nuclei", "already"), ("a/b", "name")]
)
def test_a_name_must_be_free_and_good(library, name, message):
    before = files(library)
    with pytest.raises(ModelError, match=message):
        library.duplicate("mine@2", name)
    with pytest.raises(ModelError, match=message):
        library.rename("mine", name)
    assert files(library) == before


def test_a_foreign_file_in_the_way_is_left_alone(library):
    (library.folder / "copy@1.safetensors").write_text("precious")
    with pytest.raises(ModelError, match="move it away"):
        library.duplicate("mine", "copy")
    assert (library.folder / "copy@1.safetensors").read_text() == "precious"


def test_a_new_version_is_added_and_used(library, tmp_path):
    library.make_current("mine@1")
    made = store(Library(tmp_path / "made"), "mine", 2, "mine@1", description="Better.")
    entry = library.add(made)
    assert entry.spec.key == "mine@11"
    assert (entry.spec.parent, entry.spec.description) == ("mine@1", "Better.")
    assert library.current("mine") == entry
    assert made.exists()
    assert without_header(entry.path) == without_header(made)


def test_no_version_takes_the_name_of_its_parent(library, tmp_path):
    child = store(Library(tmp_path / "work"), "mine", version=1, parent="mine@1")
    library.rename("mine", "yours")
    assert library.add(child).spec.key == "mine@2"


def test_of_two_programs_that_add_at_once_both_succeed(library, tmp_path, monkeypatch):
    made = store(Library(tmp_path / "made"), "mine", 1)
    numbers = iter([10, 10, 11])  # the others' 10 was not there when it was looked for
    monkeypatch.setattr(library, "next_version", lambda *_: next(numbers))
    before = library.find("mine@10").path.read_bytes()
    assert library.add(made).spec.key == "mine@11"
    assert library.find("mine@10").path.read_bytes() == before


# --- renaming ---------------------------------------------------------------------


def test_all_versions_are_renamed_and_their_children_follow(library):
    store(library, "other", 1, "mine@2")
    store(library, "stranger", 1, "gone@7")
    content = {v: without_header(library.find(f"mine@{v}").path) for v in (1, 2, 10)}
    renamed = library.rename("mine", "ours")
    assert [e.spec.key for e in renamed] == ["ours@1", "ours@2", "ours@10"]
    assert [e.spec.parent for e in renamed] == ["nuclei@1", "ours@1", "ours@1"]
    assert [e.current for e in renamed] == [False, False, True]
    assert library.find("other").spec.parent == "ours@2"
    assert library.find("stranger").spec.parent == "gone@7"
    assert files(library) == [
        f"{key}.safetensors"
        for key in ("other@1", "ours@1", "ours@10", "ours@2", "stranger@1")
    ]
    for version, weights in content.items():
        assert without_header(library.find(f"ours@{version}").path) == weights


def test_a_pin_and_the_dates_go_along(library):
    os.utime(library.find("mine@2").path, (1e9, 1e9))
    library.make_current("mine@2")
    library.rename("mine", "ours")
    assert library.current("ours").spec.key == "ours@2"
    assert library.current("ours").path.stat().st_mtime == 1e9
    store(library, "mine", 1)
    store(library, "mine", 2)
    store(library, "mine", 3)
    assert library.current("mine").spec.key == "mine@3"


def test_bundled_versions_keep_their_name(library):
    with pytest.raises(ModelError, match="duplicate it"):
        library.rename("nuclei", "cells")
    store(library, "nuclei", 2, "nuclei@1")
    library.rename("nuclei", "cells")
    assert library.find("cells").spec.key == "cells@2"
    assert library.find("cells").spec.parent == "nuclei@1"
    assert library.find("nuclei").bundled
    with pytest.raises(ModelError, match="no model"):
        library.rename("nothing", "something")


def test_renaming_that_fails_halfway_changes_nothing(library, monkeypatch):
    before = {path: path.read_bytes() for path in library.folder.iterdir()}
    copy = module.copy_under

    def full_disk(spec, source, target, *, exclusive):
        if spec.version == 10:
            raise OSError("No space left on device")
        copy(spec, source, target, exclusive=exclusive)

    monkeypatch.setattr(module, "copy_under", full_disk)
    with pytest.raises(OSError, match="No space"):
        library.rename("mine", "ours")
    assert {path: path.read_bytes() for path in library.folder.iterdir()} == before


# --- removing and descent ---------------------------------------------------------


def test_the_tree_of_descent(library):
    assert tree(library) == [
        {"nuclei@1": [{"mine@1": [{"mine@2": []}, {"mine@10": []}]}]}
    ]


def test_children_of_a_removed_version_keep_its_key(library):
    library.remove("mine@1")
    assert library.find("mine@2").spec.parent == "mine@1"
    assert tree(library) == [{"mine@2": []}, {"mine@10": []}, {"nuclei@1": []}]


def test_the_number_of_a_removed_parent_is_not_given_again(library):
    store(library, "copy", 1, "mine@10")
    library.remove("mine@10")
    assert library.next_version("mine") == 11


def test_models_that_claim_to_be_each_others_parents_are_all_in_the_tree(library):
    store(library, "a", 1, "b@1")
    store(library, "b", 1, "a@1")
    store(library, "self", 1, "self@1")
    assert {"a@1": [{"b@1": []}]} in tree(library)
    assert {"self@1": []} in tree(library)


def test_a_bundled_model_cannot_be_removed(library, bundled):
    with pytest.raises(ModelError, match="stays"):
        library.remove("nuclei@1")
    assert (bundled / "nuclei@1.safetensors").exists()


def test_what_is_replaced_is_read_anew(library):
    assert library.find("mine@2").spec.description == ""
    path = store(library, "mine", 2, description="Other cells.")
    assert library.find("mine@2").spec.description == "Other cells."
    assert read_spec(path).description == "Other cells."
    path.unlink()
    assert "mine@2" not in keys(library)
