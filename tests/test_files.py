"""Atomic writes leave the old file or the new one, whatever happens; reads are bounded."""

import errno
import os
import stat

import pytest

from offrl.errors import CheckpointError
from offrl.files import (
    atomic_write,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    naming,
    read_json_object,
    sha256_file,
)


def test_what_is_written_is_there(tmp_path):
    atomic_write_bytes(tmp_path / "a", b"\x00\xff")
    atomic_write_text(tmp_path / "b", "é\n")
    atomic_write_json(tmp_path / "c", {"x": [1, 2.5, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "é\n".encode()
    assert read_json_object(tmp_path / "c", ValueError) == {"x": [1, 2.5, None]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_folders_are_made_and_old_content_is_replaced(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    atomic_write_text(path, "one")
    atomic_write_text(path, "two")
    assert path.read_text() == "two"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failed_block_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_failing_disk_leaves_the_old_file_and_is_named(tmp_path, monkeypatch, function):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_folder_is_named_by_the_file_that_was_wanted(tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="blocked"):
        atomic_write_text(tmp_path / "blocked" / "file", "x")
    with pytest.raises(OSError, match="proc") as caught:
        atomic_write_text("/proc/offrl-file", "x")
    assert caught.value.filename == "/proc/offrl-file"


def test_an_error_that_names_its_own_file_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "other"):
        open(tmp_path / "mine").close()
    assert caught.value.filename == str(tmp_path / "mine")


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "c", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[1]", b"3", b'"x"', b"null", b"[" * 200_000, b"9" * 10_000, b" " * (1 << 21)],
)
def test_a_bad_json_file_is_one_error_of_the_wanted_class(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json_object(tmp_path / "x.json", CheckpointError)


def test_the_hash_is_the_standard_one(tmp_path):
    """SHA-256 of 'abc', FIPS 180-4, appendix B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected
