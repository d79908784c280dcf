"""The tree of versions, and what its buttons do to the library."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QInputDialog, QMessageBox

from napari_attunet.header import write_header
from napari_attunet.library import Library
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets.history import COLUMNS, HistoryPanel, data_of, scores_of
from napari_attunet.widgets.jobs import _Work

TIMEOUT = 20_000

RECORD = {
    "data": {"images": 3, "validation_images": 2},
    "scores": {"dice": 0.876, "ap50": 0.5, "ap70": 0.25},
    "settings": {"steps": 300, "crop": [64, 64]},
}


def store(library, name, version=1, parent=None, **fields):
    spec = ModelSpec(
        name=name,
        version=version,
        parent=parent,
        network=NetworkSpec(features=(2, 3)),
        **fields,
    )
    library.folder.mkdir(exist_ok=True)
    path = library.path_for(spec)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, write_header(spec))
    os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def library(tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: bundled)
    store(Library(bundled), "nuclei", description="Finds nuclei.", training=RECORD)
    library = Library(tmp_path / "models")
    store(library, "mine", 1, "nuclei@1", training=RECORD)
    store(library, "mine", 2, "mine@1")
    return library


@pytest.fixture
def panel(library, qtbot):
    panel = HistoryPanel(library)
    qtbot.addWidget(panel)
    yield panel
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)


def rows(panel):
    """Every line: depth, model, whether in use, images, scores, date."""

    def walk(item, depth):
        yield (depth, *(item.text(column) for column in range(len(COLUMNS))))
        for index in range(item.childCount()):
            yield from walk(item.child(index), depth + 1)

    top = panel.tree.topLevelItemCount()
    return [r for i in range(top) for r in walk(panel.tree.topLevelItem(i), 0)]


def in_use(panel):
    return [row[1] for row in rows(panel) if row[2]]


def press(qtbot, panel, key, button):
    panel.select(key)
    assert panel.selected.spec.key == key
    with qtbot.waitSignal(panel.changed, timeout=TIMEOUT):
        button.click()
    qtbot.waitUntil(lambda: panel._job is None, timeout=TIMEOUT)


@pytest.fixture
def answer(monkeypatch):
    """Answer what is asked for; holds the last question."""

    class Answer:
        name = ("", False)
        button = QMessageBox.StandardButton.Yes
        asked = ""

        def text(self, parent, title, question, text=""):
            self.asked = f"{question} {text}"
            return self.name

        def ask(self, parent, title, question):
            self.asked = question
            return self.button

    answer = Answer()
    monkeypatch.setattr(QInputDialog, "getText", answer.text)
    monkeypatch.setattr(QMessageBox, "question", answer.ask)
    return answer


# --- what is shown ----------------------------------------------------------------


def test_versions_stand_under_their_parents(panel):
    assert rows(panel) == [
        (0, "nuclei@1", "✓", "3", "0.88", "0.50", ""),
        (1, "mine@1", "", "3", "0.88", "0.50", "2023-11-14"),
        (2, "mine@2", "✓", "", "", "", "2023-11-14"),
    ]
    top = panel.tree.topLevelItem(0)
    assert top.isExpanded()
    assert top.font(0).bold()
    assert not top.child(0).font(0).bold()


def test_a_narrow_dock_leaves_the_date_to_the_tip(panel):
    date = COLUMNS.index("Date")
    panel.resize(340, 300)
    panel.show()
    assert panel.tree.isColumnHidden(date)
    scrolling = panel.tree.horizontalScrollBar()
    assert scrolling.maximum() == 0
    panel.resize(600, 300)
    assert not panel.tree.isColumnHidden(date)


def test_tips_tell_all_about_a_version(panel):
    top = panel.tree.topLevelItem(0)
    for text in (
        "Finds nuclei.",
        "Came with napari-attunet.",
        "Trained on 3 images, scored on 2 others.",
        "AP70: 0.250",
        "steps: 300",
        "crop: [64, 64]",
    ):
        assert text in top.toolTip(0)
        assert text in top.toolTip(4)
    own = top.child(0).toolTip(0)
    assert "Trained from nuclei@1." in own
    assert "mine@1.safetensors" in own


@pytest.mark.parametrize(
    ("training", "scores"),
    [
        ({}, {}),
        ({"scores": None, "data": 3}, {}),
        ({"scores": {"dice": 1, "other": 2}}, {"dice": 1.0}),
        ({"scores": {"validation": {"ap50": 0.5}, "corrections": {}}}, {"ap50": 0.5}),
        ({"scores": {"dice": "?"}}, {}),
    ],
)
def test_records_of_any_kind_are_borne(training, scores):
    spec = ModelSpec(name="it", network=NetworkSpec(), training=training)
    assert scores_of(spec) == scores
    assert data_of(spec) == {}


def test_buttons_know_what_can_be_done(panel):
    def enabled():
        return [
            b.isEnabled()
            for b in (panel.use, panel.rename, panel.duplicate, panel.delete)
        ]

    assert enabled() == [False] * 4
    panel.select("nuclei@1")
    assert enabled() == [False, False, True, False]
    panel.select("mine@1")
    assert enabled() == [True] * 4
    panel.select("mine@2")
    assert enabled() == [False, True, True, True]


def test_what_others_change_appears_and_the_selection_stays(panel, library, qtbot):
    panel.select("mine@1")
    store(library, "mine", 3, "mine@1")
    qtbot.waitUntil(lambda: len(rows(panel)) == 4, timeout=TIMEOUT)
    assert in_use(panel) == ["nuclei@1", "mine@3"]
    assert panel.selected.spec.key == "mine@1"


def test_an_empty_library(tmp_path, monkeypatch, qtbot):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: tmp_path)
    panel = HistoryPanel(Library(tmp_path / "none"))
    qtbot.addWidget(panel)
    assert rows(panel) == []
    for action in (
        panel.use_selected,
        panel.rename_selected,
        panel.duplicate_selected,
        panel.delete_selected,
    ):
        action()
    assert not (tmp_path / "none").exists()


# --- what is done -----------------------------------------------------------------


def test_rolling_back_and_forward(panel, library, qtbot):
    press(qtbot, panel, "mine@1", panel.use)
    assert library.current("mine").spec.key == "mine@1"
    assert in_use(panel) == ["nuclei@1", "mine@1"]
    assert panel.message.text() == "mine@1 is now in use."
    assert not panel.use.isEnabled()
    press(qtbot, panel, "mine@2", panel.use)
    assert library.current("mine").spec.key == "mine@2"


def test_renaming(panel, library, qtbot, answer):
    answer.name = ("  ours ", True)
    press(qtbot, panel, "mine@2", panel.rename)
    assert "all your versions of mine" in answer.asked
    assert [row[1] for row in rows(panel)] == ["nuclei@1", "ours@1", "ours@2"]
    assert panel.message.text() == "mine is now called ours."


def test_duplicating(panel, library, qtbot, answer):
    answer.name = ("fresh", True)
    press(qtbot, panel, "nuclei@1", panel.duplicate)
    assert "nuclei-copy" in answer.asked
    assert library.find("fresh").spec.parent == "nuclei@1"
    assert (1, "fresh@1") in [row[:2] for row in rows(panel)]


@pytest.mark.parametrize("name", [("new", False), ("", True), ("  ", True)])
def test_no_name_no_change(panel, library, answer, name):
    answer.name = name
    panel.select("mine@1")
    panel.rename_selected()
    panel.duplicate_selected()
    assert panel._job is None


def test_deleting_is_asked_for(panel, library, qtbot, answer):
    answer.button = QMessageBox.StandardButton.No
    panel.select("mine@1")
    panel.delete.click()
    assert "mine@1" in answer.asked
    assert panel._job is None
    answer.button = QMessageBox.StandardButton.Yes
    press(qtbot, panel, "mine@1", panel.delete)
    assert [row[:2] for row in rows(panel)] == [(0, "mine@2"), (0, "nuclei@1")]


def test_a_refusal_is_told_and_nothing_changes(panel, library, qtbot, answer):
    before = len(notification_manager.records)
    answer.name = ("nuclei", True)
    press(qtbot, panel, "mine@1", panel.rename)
    assert "already" in panel.message.text()
    assert "already" in notification_manager.records[before].message
    assert [row[1] for row in rows(panel)] == ["nuclei@1", "mine@1", "mine@2"]
    assert panel.duplicate.isEnabled()


def test_a_version_that_was_just_deleted_elsewhere(panel, library, qtbot):
    panel.select("mine@1")
    library.remove("mine@1")
    with qtbot.waitSignal(panel.changed, timeout=TIMEOUT):
        panel.use_selected()
    assert "no model" in panel.message.text()
    assert "mine@1" not in [row[1] for row in rows(panel)]


def test_closing_it_during_a_change_is_no_harm(library, qtbot, monkeypatch):
    panel = HistoryPanel(library)
    panel.select("mine@1")
    panel.use_selected()
    panel.deleteLater()
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert library.current("mine").spec.version in (1, 2)


def test_entries_are_kept_whole_in_the_tree(panel, library):
    panel.select("mine@2")
    entry = library.find("mine@2")
    assert panel.selected == replace(entry, current=True)
