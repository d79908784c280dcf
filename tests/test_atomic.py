"""A file is there whole, or as it was."""

import os

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


def test_what_kills_left_is_cleared_away_after_a_day(tmp_path):
    old, young, other, folder = (
        tmp_path / name
        for name in (".0123abcd.a.txt", ".4567abcd.a.txt", ".0123abcd.b.txt", "c")
    )
    for path in (old, young, other):
        path.write_text("half")
    folder.mkdir()
    left = folder / ".0123abcd.d"
    left.mkdir()
    (left / "part").write_text("half")
    for path in (old, other, left):
        os.utime(path, (0, 0))
    write(tmp_path / "a.txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {
        "a.txt",
        young.name,
        other.name,
        "c",
    }
    with replacing(folder / "d") as temporary:
        temporary.mkdir()
    assert [p.name for p in folder.iterdir()] == ["d"]
