"""Checkpoints survive a process that dies between any two file operations, and a disk that is full."""

import contextlib
import errno
import os
import pickle
import random

import numpy as np
import pytest
import torch

from offrl.errors import CheckpointError
from offrl.training import checkpoint
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state


class Crash(Exception):
    pass


def step_on_disk(folder) -> int | None:
    state, _ = load_checkpoint(folder)
    return None if state is None else state["step"]


def save(folder, step: int) -> None:
    save_checkpoint(folder, {"step": step, "weights": torch.full((3,), float(step))})


def test_what_is_saved_is_loaded(tmp_path):
    state = {"step": 7, "weights": torch.randn(2, 3), "nested": [{"a": 1.5, "b": None}, "text"], "flag": True}
    save_checkpoint(tmp_path, state)
    loaded, note = load_checkpoint(tmp_path)
    assert note == ""
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == {"format": checkpoint.FORMAT, **state}


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path) == (None, "")


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert step_on_disk(tmp_path) == 3
    (tmp_path / checkpoint.NEWEST).unlink()
    assert step_on_disk(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-previous.pt",
        "checkpoint-previous.pt.sha256",
        "checkpoint.pt.sha256",
    ]


def damage(path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / checkpoint.NEWEST)
    state, note = load_checkpoint(tmp_path)
    assert state["step"] == 1
    assert "checkpoint.pt is damaged" in note
    assert "going on from the one before" in note


@pytest.mark.parametrize("accident", ["cut", "empty", "no hash", "empty hash", "binary hash"])
def test_every_kind_of_damage_is_noticed(tmp_path, accident):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / checkpoint.NEWEST
    recorded = tmp_path / "checkpoint.pt.sha256"
    if accident == "no hash":
        recorded.unlink()
    else:
        target, data = {
            "cut": (newest, newest.read_bytes()[:-5]),
            "empty": (newest, b""),
            "empty hash": (recorded, b""),
            "binary hash": (recorded, b"\xff\xfe"),
        }[accident]
        target.write_bytes(data)
    assert step_on_disk(tmp_path) == 1


def test_when_both_are_damaged_the_message_names_both(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / checkpoint.NEWEST)
    damage(tmp_path / checkpoint.PREVIOUS)
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint.*checkpoint\.pt.*checkpoint-previous\.pt"
    ):
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_never_pushes_out_the_intact_one_before_it(tmp_path, monkeypatch):
    """Newest damaged, previous intact: whichever rename of the next save fails, an intact one is left."""
    for broken in range(4):
        folder = tmp_path / str(broken)
        folder.mkdir()
        save(folder, 1)
        save(folder, 2)
        damage(folder / checkpoint.NEWEST)
        fail_at(monkeypatch, "replace", broken)
        with pytest.raises(Crash) if broken < 3 else contextlib.nullcontext():
            save(folder, 3)
        monkeypatch.undo()
        assert step_on_disk(folder) == (3 if broken == 3 else 1)


def fail_at(monkeypatch, function: str, call: int, error: BaseException | None = None) -> None:
    """Let the given call of ``os.FUNCTION`` raise instead of doing its work."""
    real, calls = getattr(os, function), iter(range(1_000_000))

    def sometimes(*args, **kwargs):
        if next(calls) == call:
            raise error or Crash
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, sometimes)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_before_any_rename_or_flush_leaves_a_valid_state(tmp_path, monkeypatch, before, function):
    """With 0, 1 or 2 checkpoints on disk, let each rename (or fsync) of the next save be the last thing done."""
    for call in range(20):
        folder = tmp_path / str(call)
        folder.mkdir()
        for step in range(1, before + 1):
            save(folder, step)
        with monkeypatch.context() as patch:
            fail_at(patch, function, call)
            try:
                save(folder, before + 1)
                crashed = False
            except Crash:
                crashed = True
        found = step_on_disk(folder)
        assert found in ((before or None, before + 1) if crashed else (before + 1,))
        save(folder, 9)  # and the run goes on
        assert step_on_disk(folder) == 9
        if not crashed:
            assert call >= 2  # the temporary file and the hash at least
            return
    raise AssertionError("save_checkpoint never finished")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_an_error_that_names_the_file_and_costs_nothing(tmp_path, monkeypatch, function):
    save(tmp_path, 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    fail_at(monkeypatch, function, 0, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left") as caught:
        save(tmp_path, 2)
    assert "checkpoint" in caught.value.filename
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_newer_format_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1; upgrade"):
        load_checkpoint(tmp_path)


def plant(folder, data: bytes) -> None:
    """A file with the right hash beside it: only its content is wrong."""
    (folder / checkpoint.NEWEST).write_bytes(data)
    digest = checkpoint.sha256_file(folder / checkpoint.NEWEST)
    (folder / "checkpoint.pt.sha256").write_text(digest)


class Hostile:
    """Unpickling it runs a command."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_hostile_pickle_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 5):
        plant(tmp_path, pickle.dumps(Hostile(), protocol=protocol))
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            load_checkpoint(tmp_path)
    torch.save({"format": 1, "state": Hostile()}, tmp_path / "evil")
    plant(tmp_path, (tmp_path / "evil").read_bytes())
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_other_objects_are_not_checkpoints(tmp_path):
    for thing in ([1, 2], {"step": 1}, torch.zeros(2)):
        torch.save(thing, tmp_path / "thing")
        plant(tmp_path, (tmp_path / "thing").read_bytes())
        with pytest.raises(CheckpointError, match="is not a checkpoint of this program"):
            load_checkpoint(tmp_path)


def test_global_random_streams_go_on_after_a_checkpoint(tmp_path):
    """torch, NumPy and Python draw the same numbers from a restored state, also half way through a pair of normals."""

    def draws():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()  # noqa: NPY002

    random.gauss(0, 1)
    np.random.normal()  # noqa: NPY002
    save_checkpoint(tmp_path, {"rng": rng_state()})
    first = draws()
    state, _ = load_checkpoint(tmp_path)
    set_rng_state(state["rng"])
    assert draws() == first
