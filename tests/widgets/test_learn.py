"""A round of learning in the dock, whatever the training and the user do to it."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from napari_attunet.architecture import ATTENTION, GATES, SIGNALS, WHERE
from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.errors import TrainingError
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.progress import Progress
from napari_attunet.schema import from_json
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.training.record import ROUNDS, Contender, Record, Round
from napari_attunet.training.settings import RoundSettings
from napari_attunet.widgets import rounds
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.learn import LearnPanel
from napari_attunet.widgets.learn_form import NEW_MODEL
from napari_attunet.widgets.rounds import Request

TIMEOUT = 20_000


def save(path, bias=(0.0, 9, 0), name="grey", parent=None, **network):
    spec = ModelSpec(
        name=name,
        network=NetworkSpec(out_channels=3, features=(4, 8, 16), **network),
        output="objects",
        description=f"Finds what is {name}.",
    )
    model = Model.fresh(replace(spec, parent=parent))
    model.network.head.bias.data += torch.tensor(bias)
    return save_model(model, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder / "grey@1.safetensors", (9.0, 0, 0))
    save(folder / "colour@1.safetensors", name="colour", in_channels=3)
    return folder


@pytest.fixture(autouse=True)
def _no_bundled_models(monkeypatch, models):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: models)


OUTCOME = Round(
    contenders=(
        Contender(
            name="parent",
            model="grey@1",
            scores={"validation": {"dice": 0.7}, "corrections": {"dice": 0.6}},
            merit=0.7,
        ),
        Contender(
            name="tuned",
            model="grey@1",
            scores={"validation": {"dice": 0.8}, "corrections": {"dice": 0.9}},
            merit=0.8,
            file="tuned.safetensors",
        ),
    ),
    proposed="tuned",
    reason="tuned is best with 0.800 (parent 0.700).",
    trusted=False,
)


class Child:
    """Stands in for the process that trains."""

    def __init__(self, weights: Path):
        self.weights = weights
        self.arguments = []
        self.go = threading.Event()  # to the end
        self.error = None
        self.outcome = OUTCOME
        self.total = 80
        self.closed = []
        self.stopped = []

    def __call__(self, arguments, *, enough, log):
        self.arguments.append(list(arguments))
        folder = Path(self.option("--round"))
        try:
            yield Progress(0, 0, "Starting")
            Record(identity="it", total=self.total).write(folder)
            done = 0
            while not self.go.is_set() and not enough.is_set():
                time.sleep(0.01)
                done = min(done + 1, 80)
                yield Progress(done, 80, "Training (tuned)", {"loss": 1 / done})
                if done == 3:
                    shutil.copy(self.weights, self.option("--preview"))
                if self.error is not None:
                    Record(identity="it", done=done, total=self.total).write(folder)
                    raise self.error
            self.stopped.append(enough.is_set())
            yield Progress(done, 80, "Training (tuned)", {"loss": 0.1, "dice": 0.8})
            shutil.copy(self.weights, folder / "tuned.safetensors")
            record = Record(identity="it", done=80, total=80, outcome=self.outcome)
            record.write(folder)
            return {"event": "result"}
        finally:
            self.closed.append(threading.current_thread())

    def option(self, name):
        return self.arguments[-1][self.arguments[-1].index(name) + 1]


@pytest.fixture
def child(monkeypatch, tmp_path):
    child = Child(save(tmp_path / "weights.safetensors", parent="grey@1"))
    monkeypatch.setattr(rounds, "child_steps", child)
    return child


@pytest.fixture
def training_set(tmp_path):
    training_set = TrainingSet(tmp_path / "set")
    labels = np.zeros((64, 64), np.int32)
    labels[10:30, 10:30] = 1
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    training_set.add(
        Correction(image=image, axes="YX", labels=labels, output="objects")
    )
    return training_set


@pytest.fixture
def cells(viewer):
    return viewer.add_image(data.cell()[:200, :150], name="cells")


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "library")


@pytest.fixture
def panel(viewer, cells, child, training_set, library, qtbot):
    panel = LearnPanel(viewer, training_set, library)
    viewer.window.add_dock_widget(panel, name="test")
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    return panel


def idle(qtbot, panel):
    qtbot.waitUntil(lambda: not panel.busy and not _Work.alive, timeout=TIMEOUT)


def begin(qtbot, panel):
    panel.train.click()
    curves = panel.plot.curves
    qtbot.waitUntil(
        lambda: bool(curves) and len(curves["tuned"].steps) > 4, timeout=TIMEOUT
    )


def learn(qtbot, panel, child):
    begin(qtbot, panel)
    child.go.set()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert panel.busy  # until the user decides


def folders(training_set):
    return list((training_set.folder / ROUNDS).glob("*"))


# --- before ----------------------------------------------------------------------


def test_nothing_to_learn_from(viewer, child, library, tmp_path, qtbot, told):
    panel = LearnPanel(viewer, TrainingSet(tmp_path / "empty"), library)
    qtbot.addWidget(panel)
    assert not panel.train.isEnabled()
    assert "nothing to learn from" in panel.samples_line.text()
    panel.start()
    assert told() == [panel.samples_line.text()]
    assert not panel.running


def test_samples_that_are_switched_off(panel, training_set):
    (sample,) = training_set.samples()
    assert panel.samples_line.text() == "Learns from 1 corrected image."
    training_set.set_used(sample, False)
    panel.refresh_samples()
    assert not panel.train.isEnabled()
    assert "switched off" in panel.samples_line.text()


def test_a_model_that_suits_the_image_is_suggested(viewer, panel):
    model = panel.form.model
    names = [model.itemText(i) for i in range(model.count())]
    assert names == ["colour", "grey", NEW_MODEL]
    assert panel.form.entry.spec.name == "grey"
    tissue = viewer.add_image(data.immunohistochemistry()[:64, :64])
    panel.reset_choices()
    panel.form.image.select(tissue)
    assert panel.form.entry.spec.name == "colour"


def test_defaults_are_those_of_a_round(panel):
    panel.form.model.choose("grey")
    assert panel.form.settings() == RoundSettings()


def test_everything_chosen_reaches_the_training(panel, child, qtbot):
    panel.form.model.choose("grey")
    panel.form.effort.setCurrentIndex(1)
    options = panel.form.options
    options.steps.setValue(70)
    options.learning_rate.setValue(0.002)
    options.freeze.setCurrentText("encoder")
    options.augmentation.setCurrentText("strong")
    options.scratch.setChecked(True)
    options.device.setCurrentText("cpu")
    options.threads.setValue(1)
    options.seed.setValue(5)
    begin(qtbot, panel)
    assert child.option("--set") == str(panel._training_set.folder)
    assert child.option("--from").endswith("grey@1.safetensors")
    assert (child.option("--device"), child.option("--threads")) == ("cpu", "1")
    assert Path(child.option("--preview")).parent == Path(child.option("--round"))
    settings = from_json(RoundSettings, child.option("--settings"))
    assert settings == RoundSettings(
        effort="thorough",
        starts=("parent", "scratch"),
        freeze="encoder",
        steps=70,
        learning_rate=0.002,
        augmentation=1.5,
        seed=5,
    )
    panel.cancel.click()
    idle(qtbot, panel)


def test_a_new_model_has_a_name_of_its_own(panel, library, child, qtbot):
    options = panel.form.options
    taken = library.entries()[0].spec.name
    panel.form.model.setCurrentText(NEW_MODEL)
    options.name.setText(taken)
    panel.train.click()
    assert not panel.busy
    assert f"There is a model {taken} already" in panel.message.text()
    panel.form.model.choose(taken)
    panel.form.model.setCurrentText(NEW_MODEL)
    assert options.name.text() == f"{taken}-2"


def test_a_new_model(panel, child, qtbot):
    options = panel.form.options
    assert options.name.isHidden()
    panel.form.model.setCurrentText(NEW_MODEL)
    assert not options.name.isHidden()
    assert options.freeze.isHidden()
    assert options.isExpanded()
    options.name.setText("tubes")
    options.features.setText("8, 16, 32")
    options.dimensions.setCurrentText("3D")
    options.gates.setCurrentText("none")
    options.output.setCurrentText("classes")
    assert (panel.form.spec.name, panel.form.spec.output) == ("tubes", "classes")
    begin(qtbot, panel)
    assert "--from" not in child.arguments[0]
    settings = from_json(RoundSettings, child.option("--settings"))
    assert (settings.name, settings.output) == ("tubes", "classes")
    assert settings.starts == ("scratch",)
    assert settings.network.ndim == 3
    assert settings.network.features == (8, 16, 32)
    assert settings.network.gate is None
    child.go.set()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert "finds" in panel.compare.show_changes.text()  # there is no old model
    panel.compare.discard.click()
    idle(qtbot, panel)


MECHANISMS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    **{
        gate: ({"gates": gate}, {"gate": GateSpec(kind=gate)}) for gate in sorted(GATES)
    },
    **{
        signal: ({"signal": signal}, {"gate": GateSpec(signal=signal)})
        for signal in SIGNALS
    },
    **{
        kind: (
            {"attention": kind, "where": where},
            {"attention": (AttentionSpec(kind=kind, where=where),)},
        )
        for kind, where in zip(ATTENTION, itertools.cycle(WHERE), strict=False)
    },
}


@pytest.mark.parametrize(("chosen", "expected"), MECHANISMS.values(), ids=MECHANISMS)
def test_every_mechanism_can_be_chosen(panel, chosen, expected):
    options = panel.form.options
    panel.form.model.setCurrentText(NEW_MODEL)
    for name, text in chosen.items():
        getattr(options, name).setCurrentText(text)
    for box, whether in ((options.transformer, True), (options.residual, True)):
        box.setChecked(whether)
    network = panel.form.spec.network
    wanted = NetworkSpec(
        features=network.features,
        out_channels=3,
        transformer=TransformerSpec(),
        residual=True,
        **expected,
    )
    assert network == wanted


def test_self_attention_is_offered_where_it_can_be_paid_for(panel):
    options = panel.form.options
    panel.form.model.setCurrentText(NEW_MODEL)
    options.attention.setCurrentText("self")
    assert options.where.currentText() == "bottleneck"


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("name", "a/b", "cannot name a model"),
        ("features", "eight", "Features are numbers"),
        ("features", "8", "two levels"),
    ],
)
def test_a_new_model_described_wrongly(panel, child, told, field, text, message):
    panel.form.model.setCurrentText(NEW_MODEL)
    getattr(panel.form.options, field).setText(text)
    assert panel.form.spec is None
    panel.train.click()
    assert not panel.running
    assert message in told()[0]
    assert message in panel.message.text()


def test_what_is_found_is_told_by_samples_or_of_a_new_model(panel):
    panel.form.choose_output("classes")
    assert panel.form.settings().output is None  # of a model that there is
    panel.form.model.setCurrentText(NEW_MODEL)
    assert panel.form.settings().output == "classes"


# --- while it trains -------------------------------------------------------------


def test_buttons_react_at_once(panel, child, qtbot):
    began = time.perf_counter()
    panel.train.click()
    took = time.perf_counter() - began
    assert not panel.train.isEnabled()
    assert panel.stop.isEnabled()
    assert panel.cancel.isEnabled()
    assert not panel.bar.isHidden()
    assert took < 0.5  # on a loaded machine; 0.01 on a quiet one
    began = time.perf_counter()
    panel.cancel.click()
    assert not panel.cancel.isEnabled()
    assert not panel.stop.isEnabled()
    assert time.perf_counter() - began < 0.5
    idle(qtbot, panel)


def test_it_is_drawn_and_told(panel, child, qtbot):
    begin(qtbot, panel)
    assert panel.message.text() == "Training (tuned)"
    assert panel.bar.maximum() == 80
    assert not panel.plot.isHidden()
    panel.start()  # again
    assert len(child.arguments) == 1
    child.go.set()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert panel.plot.curves["tuned"].scores == [0.8]


def test_stop_keeps_the_best_so_far(panel, child, qtbot):
    begin(qtbot, panel)
    panel.stop.click()
    assert not panel.stop.isEnabled()
    assert panel.cancel.isEnabled()
    assert "best so far" in panel.message.text()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert child.stopped == [True]
    assert not panel.compare.isHidden()


def test_cancel_leaves_all_as_it_was(viewer, panel, child, training_set, qtbot):
    before = list(viewer.layers)
    begin(qtbot, panel)
    qtbot.waitUntil(lambda: panel.preview.layer is not None, timeout=TIMEOUT)
    assert len(folders(training_set)) == 1
    panel.cancel.click()
    assert list(viewer.layers) == before
    idle(qtbot, panel)
    assert len(child.closed) == 1
    assert folders(training_set) == []
    assert panel.train.isEnabled()
    assert panel.compare.isHidden()
    assert "all is as it was" in panel.message.text()
    assert training_set.damaged() == {}


def test_cancel_after_stop(panel, child, training_set, qtbot):
    begin(qtbot, panel)
    panel.stop.click()
    panel.cancel.click()
    idle(qtbot, panel)
    assert panel.compare.isHidden()
    assert folders(training_set) == []


def test_watching(viewer, panel, child, cells, qtbot):
    begin(qtbot, panel)
    qtbot.waitUntil(lambda: panel.preview.layer is not None, timeout=TIMEOUT)
    assert panel.preview.layer.name == "cells · learning"
    panel.form.watch.setChecked(False)
    assert list(viewer.layers) == [cells]
    panel.form.watch.setChecked(True)
    qtbot.waitUntil(lambda: panel.preview.layer is not None, timeout=TIMEOUT)
    panel.preview._next = 0
    viewer.layers.remove(panel.preview.layer)
    qtbot.waitUntil(lambda: not panel.form.watch.isChecked(), timeout=TIMEOUT)
    panel.cancel.click()
    idle(qtbot, panel)


def test_not_watching(viewer, panel, child, cells, qtbot):
    panel.form.watch.setChecked(False)
    learn(qtbot, panel, child)
    assert list(viewer.layers) == [cells]


@pytest.mark.parametrize(
    "error", [TrainingError("The training crashed.\nIt said: x"), RuntimeError("bug")]
)
def test_a_crash_is_told_and_can_be_resumed(
    panel, child, training_set, qtbot, told, error
):
    begin(qtbot, panel)
    child.error = error
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert str(error) in told()[0]
    assert panel.message.text() == str(error).splitlines()[0]
    qtbot.waitUntil(lambda: not panel.open_round.isHidden(), timeout=TIMEOUT)
    child.error = None
    child.go.set()
    panel.open_round.yes.click()
    assert panel.open_round.isHidden()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert child.arguments[0] == child.arguments[1]
    assert not panel.compare.isHidden()


# --- the decision ----------------------------------------------------------------


def test_what_was_learnt_is_shown(panel, child, qtbot):
    learn(qtbot, panel, child)
    compare = panel.compare
    assert compare.reason.text() == OUTCOME.reason
    assert compare.chosen.name == "tuned"
    assert not panel.train.isEnabled()
    assert not panel.form.model.isEnabled()
    assert panel.bar.isHidden()


def test_accept(viewer, panel, child, cells, training_set, library, qtbot):
    own = viewer.add_labels(np.zeros((4, 4), int), name="mine")
    learn(qtbot, panel, child)
    panel.compare.show_changes.click()
    qtbot.waitUntil(lambda: len(panel.compare.layers) == 3, timeout=TIMEOUT)
    with qtbot.waitSignal(panel.accepted, timeout=TIMEOUT) as signal:
        panel.compare.accept.click()
        assert not panel.compare.accept.isEnabled()
    assert signal.args[0].spec.key == "grey@2"
    idle(qtbot, panel)
    qtbot.waitUntil(lambda: list(viewer.layers) == [cells, own])
    assert library.current("grey").spec.version == 2
    assert panel.message.text() == "grey@2 is now in use; its parent is grey@1."
    assert panel.form.entry.spec.key == "grey@2"
    assert folders(training_set) == []
    assert panel.train.isEnabled()


def test_accepting_fails(panel, child, training_set, monkeypatch, qtbot, told):
    def accept(folder, name, library):
        raise OSError("The disk is full.")

    monkeypatch.setattr("napari_attunet.training.rounds.accept", accept)
    learn(qtbot, panel, child)
    panel.compare.accept.click()
    qtbot.waitUntil(lambda: bool(told()), timeout=TIMEOUT)
    qtbot.waitUntil(panel.compare.accept.isEnabled, timeout=TIMEOUT)
    assert "disk is full" in told()[0]
    assert len(folders(training_set)) == 1  # it can be tried again


def test_discard(viewer, panel, child, cells, training_set, library, qtbot):
    learn(qtbot, panel, child)
    panel.compare.discard.click()
    assert panel.compare.isHidden()
    idle(qtbot, panel)
    assert list(viewer.layers) == [cells]
    assert folders(training_set) == []
    assert len(library.entries()) == 2
    assert panel.train.isEnabled()


# --- what was left open ----------------------------------------------------------


def test_dropping_what_was_interrupted(panel, child, training_set, qtbot):
    begin(qtbot, panel)
    child.error = TrainingError("The training was killed.")
    qtbot.waitUntil(lambda: not panel.open_round.isHidden(), timeout=TIMEOUT)
    text = panel.open_round.text.text()
    assert text.startswith("A training was interrupted at step ")
    assert text.endswith(" of 80.")
    panel.open_round.no.click()
    assert panel.open_round.isHidden()
    idle(qtbot, panel)
    assert folders(training_set) == []


def test_a_decision_that_waits(viewer, panel, child, training_set, library, qtbot):
    learn(qtbot, panel, child)
    panel.close_down()
    again = LearnPanel(viewer, training_set, library)
    qtbot.addWidget(again)
    qtbot.waitUntil(lambda: not again.open_round.isHidden(), timeout=TIMEOUT)
    assert "waits for your decision" in again.open_round.text.text()
    again.open_round.yes.click()
    assert again.compare.chosen.name == "tuned"
    assert len(child.arguments) == 1  # nothing is trained anew
    again.compare.discard.click()
    idle(qtbot, again)
    assert folders(training_set) == []


def test_a_folder_of_somebody_else_is_left_alone(
    viewer, child, training_set, library, qtbot
):
    (training_set.folder / ROUNDS / "notes").mkdir(parents=True)
    panel = LearnPanel(viewer, training_set, library)
    qtbot.addWidget(panel)
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert panel.open_round.isHidden()


def test_what_was_closed_at_once_hides_nothing(
    viewer, panel, child, training_set, library, qtbot
):
    begin(qtbot, panel)
    child.error = TrainingError("The training was killed.")
    qtbot.waitUntil(lambda: not panel.open_round.isHidden(), timeout=TIMEOUT)
    (interrupted,) = folders(training_set)
    os.utime(interrupted, (1, 1))
    just_begun, long_ago = (
        Request.new(training_set, None, RoundSettings(), device="cpu", threads=None)
        for _ in range(2)
    )
    os.utime(long_ago.folder / "request.json", (1, 1))
    damaged = training_set.folder / ROUNDS / "damaged"
    shutil.copytree(interrupted, damaged)
    (damaged / "request.json").write_text("half")
    panel.close_down()
    again = LearnPanel(viewer, training_set, library)
    qtbot.addWidget(again)
    qtbot.waitUntil(lambda: not again.open_round.isHidden(), timeout=TIMEOUT)
    assert again.open_round.text.text().endswith(" of 80.")
    assert set(folders(training_set)) == {interrupted, just_begun.folder, damaged}


def test_what_never_began_leaves_nothing(panel, child, training_set, qtbot, told):
    child.total = 0
    child.error = TrainingError("The samples in use show different things.")
    panel.train.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert told() == [str(child.error)]
    idle(qtbot, panel)
    assert folders(training_set) == []
    assert panel.open_round.isHidden()


def test_no_outcome(panel, child, qtbot, told):
    child.outcome = None
    child.go.set()
    panel.train.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert "without saying what came of it" in told()[0]


def test_the_round_under_way_is_not_offered(panel, child, training_set, qtbot):
    begin(qtbot, panel)
    assert rounds.has_begun(folders(training_set)[0])
    panel._look_around()
    qtbot.wait(500)
    panel.cancel.click()
    idle(qtbot, panel)
    assert panel.open_round.isHidden()


# --- closing ---------------------------------------------------------------------


def test_closing_ends_the_training_and_keeps_it(
    viewer, panel, child, cells, training_set, qtbot
):
    begin(qtbot, panel)
    qtbot.waitUntil(lambda: panel.preview.layer is not None, timeout=TIMEOUT)
    panel.close_down()
    assert list(viewer.layers) == [cells]
    qtbot.waitUntil(lambda: bool(child.closed), timeout=TIMEOUT)
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert len(folders(training_set)) == 1
    assert child.closed[0] is not threading.main_thread()


def test_closing_the_viewer_ends_the_training(
    viewer, panel, child, training_set, qtbot
):
    begin(qtbot, panel)
    viewer.close()
    qtbot.waitUntil(lambda: bool(child.closed), timeout=TIMEOUT)
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert len(folders(training_set)) == 1


def test_the_plot_follows_the_theme(viewer, panel):
    viewer.theme = "light"
    assert panel.plot._theme == "light"
