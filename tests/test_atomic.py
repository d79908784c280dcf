"""A file is there whole, or as it was."""

import os
import time

import pytest

from napari_attunet.atomic import replacing


def write(path, text, **options):
    with replacing(path, **options) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        temporary.write_text(text)


def test_a_new_file_and_another_in_its_place(tmp_path):
    path = tmp_path / "deeper" / "a.txt"
    write(path, "one")
    write(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_too(tmp_path):
    path = tmp_path / "a.zarr"
    for text in ("one", "two"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert [p.name for p in path.iterdir()] == [text]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_moves_is_on_the_disk(tmp_path, monkeypatch, exclusive):
    path, flushed = tmp_path / "a.txt", []

    def flush(descriptor):
        at = os.fstat(descriptor).st_ino
        flushed.append("folder" if at == tmp_path.stat().st_ino else path.exists())

    monkeypatch.setattr(os, "fsync", flush)
    write(path, "one", exclusive=exclusive)
    assert flushed == [False, "folder"]
    write(path.with_name("b.txt"), "two", durable=False)
    assert len(flushed) == 2


def test_of_two_exclusive_writers_one_fails(tmp_path):
    path = tmp_path / "a.txt"

    def race():
        with replacing(path, exclusive=True) as mine:
            mine.write_text("mine")
            write(path, "theirs", exclusive=True)

    with pytest.raises(FileExistsError):
        race()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("days", [0, 2])
def test_what_kills_left_is_cleared_away_after_a_day(tmp_path, monkeypatch, days):
    now = time.time() + days * 24 * 3600
    monkeypatch.setattr("napari_attunet.atomic.time.time", lambda: now)
    left = tmp_path / ".0123abcd.a.txt"
    # of another path, and the user's own
    others = [tmp_path / name for name in (".0123abcd.b.txt", ".original.a.txt")]
    for path in (left, *others):
        path.write_text("half")
    write(tmp_path / "a.txt", "whole")
    assert left.exists() is (days == 0)
    assert all(path.exists() for path in others)


def test_what_kills_left_of_a_folder_goes_too(tmp_path, monkeypatch):
    left = tmp_path / ".0123abcd.d"
    left.mkdir()
    (left / "part").write_text("half")
    now = time.time() + 2 * 24 * 3600
    monkeypatch.setattr("napari_attunet.atomic.time.time", lambda: now)
    with replacing(tmp_path / "d") as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
