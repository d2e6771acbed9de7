"""Malformed input of every kind through the real command: one line on stderr, exit 1 or 2, nothing written.

Every case gets its own folder with a good dataset, a stopped run and a finished run, spoils something, types a
command, and must leave every file as it was.
"""

import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.data.source import UniformSource

TRAIN = ["train", "bc", "--dataset"]
OPTIONS = "--env Pendulum-v1 --hidden 8 --batch-size 8 --steps 12 --eval-every 0 --eval-episodes 1 --checkpoint-every 4"
CONVERT = ["data", "convert", "bad.csv", "--out", "o.hdf5", "--obs", "x", "--action", "u"]
FIELDS = ("observations", "actions", "rewards", "terminated", "truncated")
QUICK = OPTIONS.split()


@dataclass(frozen=True)
class Case:
    """Spoil the folder, then type the command; the line must match."""

    name: str
    spoil: Callable[[Path], object]
    typed: list[str]
    line: str
    code: int = 1


def nothing(folder: Path) -> None:
    pass


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "good.npz") as file:
        return dict(file)


def npz(**changes) -> Callable[[Path], None]:
    """bad.npz: the good arrays with some replaced; a function is applied to the good array, None drops it."""

    def spoil(folder: Path) -> None:
        fields = arrays(folder)
        for name, change in changes.items():
            old = fields.pop(name, None)
            if change is not None:
                fields[name] = change(old) if callable(change) else change
        np.savez(folder / "bad.npz", **fields)

    return spoil


def put(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(old: np.ndarray) -> np.ndarray:
        new = old.copy()
        new.reshape(len(new), -1)[index] = value
        return new

    return change


def hdf5(folder: Path, **changes) -> Path:
    fields = arrays(folder) | changes
    with h5py.File(folder / "bad.hdf5", "w") as file:
        for name, array in fields.items():
            if array is not None:
                file[{"terminated": "terminals", "truncated": "timeouts"}.get(name, name)] = array
    return folder / "bad.hdf5"


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def bytes_of(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def csv(text: str) -> Callable[[Path], None]:
    return bytes_of("bad.csv", text.encode())


def config_of(run: str, **changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / run / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def checkpoint(data: bytes) -> Callable[[Path], None]:
    """Both checkpoints of the stopped run replaced, with the right hashes beside them."""

    def spoil(folder: Path) -> None:
        import hashlib

        for name in ("checkpoint.pt", "checkpoint-previous.pt"):
            (folder / "stopped" / name).write_bytes(data)
            (folder / "stopped" / f"{name}.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")

    return spoil


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Hostile:
    """Unpickling it makes a folder in the working folder: the listing afterwards would show it."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def policy_json(**changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "finished" / "policy.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def damaged_checkpoints(folder: Path) -> None:
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        cut(folder / "stopped" / name)


def zip_of(name: str, **entries: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in entries.items():
                archive.writestr(entry.replace("__", "."), data)

    return spoil


def npz_bomb(folder: Path) -> None:
    """An array whose header claims 80 GB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10_000_000_000,)}
    )
    np.savez(folder / "bad.npz", **arrays(folder))
    with zipfile.ZipFile(folder / "bad.npz", "a") as archive:
        archive.writestr("infos.bomb.npy", header.getvalue())


def other_algorithm(folder: Path) -> None:
    """The stopped run's checkpoints are those of a run of td3_bc."""
    state = torch.load(folder / "stopped" / "checkpoint.pt", weights_only=True)
    checkpoint(torch_bytes(state | {"algorithm": "td3_bc"}))(folder)


def changed_data(folder: Path) -> None:
    np.savez(folder / "good.npz", **arrays(folder) | {"rewards": np.zeros(160, np.float32)})


CASES = [
    # files of data
    Case("truncated HDF5", lambda f: cut(hdf5(f)), [*TRAIN, "bad.hdf5"], r"bad\.hdf5.*(damaged|truncated|HDF5)"),
    Case("not HDF5", bytes_of("bad.hdf5", b"hello" * 99), [*TRAIN, "bad.hdf5"], r"bad\.hdf5.*HDF5"),
    Case("HDF5 without rewards", lambda f: hdf5(f, rewards=None), [*TRAIN, "bad.hdf5"], "rewards"),
    Case("HDF5 with text", lambda f: hdf5(f, rewards=np.array([b"x"] * 160)), [*TRAIN, "bad.hdf5"], "rewards"),
    Case("a missing array", npz(actions=None), [*TRAIN, "bad.npz"], r"bad\.npz.*actions"),
    Case("wrong lengths", npz(rewards=lambda a: a[:-3]), [*TRAIN, "bad.npz"], r"'rewards' has 157 rows.*160"),
    Case("wrong length of the flags", npz(truncated=lambda a: a[:-3]), [*TRAIN, "bad.npz"], "157 rows.*160"),
    Case("NaN", npz(observations=put(7, np.nan)), [*TRAIN, "bad.npz"], "'observations' is not finite .*at row 7"),
    Case("infinite reward", npz(rewards=put(3, np.inf)), [*TRAIN, "bad.npz"], "'rewards' is not finite .*at row 3"),
    Case("float32 overflow", npz(rewards=lambda a: put(3, 1e300)(a.astype(float))),
         [*TRAIN, "bad.npz"], "'rewards'.*row 3"),
    Case("integer actions", npz(actions=lambda a: a.astype(int)), [*TRAIN, "bad.npz"], "'actions' are integers"),
    Case("action out of bounds", npz(actions=put(5, 2.5)),
         [*TRAIN, "bad.npz"], r"action \[2.5\] at row 5 lies outside"),
    Case("actions of another size", npz(actions=lambda a: np.tile(a, 2)),
         [*TRAIN, "bad.npz"], "O=3, A=2 but Pendulum-v1"),
    Case("ragged shape", npz(actions=lambda a: a.reshape(-1, 1, 1)), [*TRAIN, "bad.npz"], "'actions' .*shape"),
    Case("no rows", npz(**dict.fromkeys(FIELDS, lambda a: a[:0])),
         [*TRAIN, "bad.npz"], r"(empty|no steps|no rows|0 rows)"),
    Case("flags that are no flags", npz(terminated=lambda a: a + 2.0), [*TRAIN, "bad.npz"], "'terminated'"),
    Case("text instead of numbers", npz(rewards=lambda a: a.astype(str)), [*TRAIN, "bad.npz"], "'rewards'"),
    Case("complex numbers", npz(rewards=lambda a: a + 1j), [*TRAIN, "bad.npz"], "'rewards'"),
    Case("pickled objects in an npz", npz(infos=lambda a: np.array([Hostile()], object)),
         [*TRAIN, "bad.npz"], r"bad\.npz"),
    Case("a bomb in an npz", npz_bomb, [*TRAIN, "bad.npz"], r"bad\.npz"),
    Case("a cut npz", lambda f: (npz()(f), cut(f / "bad.npz")), [*TRAIN, "bad.npz"], r"bad\.npz.*npz file"),
    Case("CSV with text", csv("x,u,r,e\n1,2,3,0\n1,oops,3,0\n"),
         [*CONVERT, "--reward", "r", "--episode", "e", "--terminated", "none"], r"bad\.csv.*'u'.*oops"),
    Case("CSV without the column", csv("x,u,r,e\n1,2,3,0\n"),
         [*CONVERT, "--reward", "reward", "--episode", "e", "--terminated", "none"], "no column 'reward'; it has x"),
    Case("CSV with an empty cell", csv("x,u,r,e\n1,2,3,0\n1,,3,0\n"),
         [*CONVERT, "--reward", "r", "--episode", "e", "--terminated", "none"], r"bad\.csv.*'u'"),
    Case("binary CSV", bytes_of("bad.csv", bytes(range(256)) * 20), [*TRAIN, "bad.csv"], r"bad\.csv"),
    Case("garbage Parquet", bytes_of("bad.parquet", b"PAR1" + b"\0" * 400 + b"PAR1"),
         [*TRAIN, "bad.parquet"], r"bad\.parquet"),
    Case("a compressed file", lambda f: (f / "bad.hdf5").write_bytes(gzip.compress(b"x" * 999)),
         [*TRAIN, "bad.hdf5"], r"bad\.hdf5"),
    Case("a folder instead of a file", lambda f: (f / "bad.hdf5").mkdir(), [*TRAIN, "bad.hdf5"], r"bad\.hdf5"),
    Case("no such file", nothing, [*TRAIN, "gone.hdf5"], r"gone\.hdf5"),
    # names
    Case("a misspelt dataset", nothing, [*TRAIN, "hoper-medium-v2"], "did you mean 'hopper-medium-v2'"),
    Case("a misspelt scheme", nothing, [*TRAIN, "d5rl:hopper-medium-v2"], "unknown scheme 'd5rl'"),
    Case("an unknown kind of file", bytes_of("data.xyz", b"x"), [*TRAIN, "data.xyz"], r"must end in .*\.hdf5"),
    Case("a misspelt Minari set", nothing, [*TRAIN, "minari:mujoco/hoper/medium-v0"], "(minari|hoper)"),
    Case("a misspelt command", nothing, ["trian"], "unknown command 'trian'; did you mean 'train'", 2),
    Case("a misspelt algorithm", nothing, ["train", "td3bc"], "unknown algorithm 'td3bc'; did you mean 'td3_bc'"),
    Case("a misspelt option", nothing,
         [*TRAIN, "good.npz", "--stps", "3"], "unknown option --stps; did you mean --steps", 2),
    Case("a misspelt preset", nothing,
         ["train", "prdc", "--dataset", "good.npz", "--preset", "hoper-"], "no preset for 'hoper-'"),
    Case("a misspelt source", nothing, ["eval", "rando", "--env", "Pendulum-v1"], "'rando'.*did you mean 'random'"),
    Case("a misspelt environment", nothing, [*TRAIN, "good.npz", "--env", "Pendulun-v1"], "Pendulun"),
    Case("no such algorithm file", nothing,
         ["train", "./gone.py", "--dataset", "good.npz"], r"no algorithm file .*gone\.py"),
    Case("a file that is no algorithm", bytes_of("a.py", b"x = 1\n"),
         ["algos", "check", "a.py"], "declares no ALGORITHM"),
    Case("a file that is no Python", bytes_of("a.py", b"\x00\xff"),
         ["train", "a.py", "--dataset", "good.npz"], r"a\.py cannot be loaded"),
    # numbers
    Case("negative steps", nothing, [*TRAIN, "good.npz", "--steps", "-3"], "steps must be 1 or more, got -3", 2),
    Case("tau the other way round", nothing, ["train", "td3_bc", "--dataset", "good.npz", "--tau", "0.995"],
         r"tau must be in \(0, 0.5\], got 0.995.*did you mean 0.005", 2),
    Case("a word for a number", nothing, [*TRAIN, "good.npz", "--lr", "fast"], "--lr needs a number, got 'fast'", 2),
    Case("a learning rate that is no number", nothing, [*TRAIN, "good.npz", "--lr", "nan"], "lr must be", 2),
    Case("a share above one", nothing, [*TRAIN, "good.npz", "--top-fraction", "10"], "top_fraction must be in", 2),
    Case("an unknown device", nothing, [*TRAIN, "good.npz", "--device", "tpu"], "device 'tpu' cannot be used"),
    Case("no episodes", nothing,
         ["eval", "random", "--env", "Pendulum-v1", "--episodes", "0"], "episodes must be 1 or more"),
    # what does not fit together
    Case("another environment than the data's", nothing, [*TRAIN, "good.npz", "--env", "MountainCarContinuous-v0"],
         "O=3, A=1 but MountainCarContinuous-v0 has observations"),
    Case("another environment than the policy's", nothing, ["eval", "finished", "--env", "MountainCarContinuous-v0"],
         "built for O=3.*another environment"),
    Case("D4RL's rule without time limits", npz(truncated=None),
         [*TRAIN, "bad.npz", "--rows", "qlearning"], "time limit"),
    Case("settings of another algorithm", nothing, ["train", "td3_bc", "--config", "finished/config.json"],
         r"belongs to bc, not to td3_bc"),
    # configs and runs
    Case("garbage instead of JSON", bytes_of("stopped/config.json", b"{\x00"),
         ["resume", "stopped"], r"config\.json is not valid JSON"),
    Case("deep JSON", bytes_of("stopped/config.json", b"[" * 100_000),
         ["resume", "stopped"], r"config\.json is not valid JSON"),
    Case("huge JSON", bytes_of("stopped/config.json", b" " * (2 << 20)), ["resume", "stopped"], "larger than"),
    Case("JSON of another kind", bytes_of("stopped/config.json", b"[1, 2]"),
         ["resume", "stopped"], "must hold a JSON object"),
    Case("garbage as --config", bytes_of("c.json", b"nope"),
         ["train", "bc", "--config", "c.json"], r"c\.json is not valid JSON"),
    Case("a config of a later format", config_of("stopped", format=99), ["resume", "stopped"], "has format 99"),
    Case("a setting that is gone", config_of("stopped", settings={"hiddn": 8}),
         ["resume", "stopped"], "no setting 'hiddn'"),
    Case("a setting of another kind", config_of("finished", settings={"lr": "fast"}),
         ["train", "bc", "--config", "finished/config.json"], "lr is 'fast'"),
    Case("a text for a number", config_of("stopped", steps="many"), ["resume", "stopped"], "'steps' is 'many'"),
    Case("not a run", nothing, ["resume", "."], "not a run directory: it has no config.json"),
    Case("no such run", nothing, ["resume", "gone"], "gone"),
    Case("a file for a run", nothing, ["resume", "good.npz"], r"good\.npz"),
    Case("other data than before", changed_data, ["resume", "stopped"], "the data of stopped changed"),
    Case("data that are gone", lambda f: (f / "good.npz").unlink(), ["resume", "stopped"], r"good\.npz"),
    Case("a damaged end mark", bytes_of("finished/final_returns.npz", b"PK\x03\x04"), ["resume", "finished"],
         r"final_returns\.npz is damaged"),
    Case("a damaged table", bytes_of("stopped/metrics.csv", b"step"),
         ["resume", "stopped"], r"metrics\.csv has other columns than this version writes"),
    # checkpoints
    Case("damaged checkpoints", damaged_checkpoints, ["resume", "stopped"], "no intact checkpoint"),
    Case("a checkpoint of another algorithm", other_algorithm, ["resume", "stopped"], "its algorithm is td3_bc"),
    Case("a checkpoint of a later format", checkpoint(torch_bytes({"format": 99})),
         ["resume", "stopped"], "has format 99"),
    Case("a hostile pickle as checkpoint", checkpoint(pickle.dumps(Hostile())),
         ["resume", "stopped"], "is not a checkpoint"),
    Case("a hostile torch file as checkpoint", checkpoint(torch_bytes({"format": 1, "x": Hostile()})),
         ["resume", "stopped"],
         "is not a checkpoint"),
    Case("garbage as checkpoint", checkpoint(b"\x80\x02garbage"), ["resume", "stopped"], "is not a checkpoint"),
    # policies
    Case("a policy of a later format", policy_json(format=99),
         ["eval", "finished", "--env", "Pendulum-v1"], "format 99"),
    Case("a policy of an unknown kind", policy_json(kind="quantum"),
         ["eval", "finished", "--env", "Pendulum-v1"], "'?quantum'?"),
    Case("a policy without its weights", lambda f: (f / "finished/policy.safetensors").unlink(),
         ["eval", "finished", "--env", "Pendulum-v1"], r"policy\.safetensors"),
    Case("cut weights", lambda f: cut(f / "finished/policy.safetensors"),
         ["eval", "finished", "--env", "Pendulum-v1"],
         r"policy\.safetensors"),
    Case("an SB3 zip that is none", bytes_of("a.zip", b"PK\x03\x04" + b"\0" * 99),
         ["eval", "sb3:a.zip", "--env", "Pendulum-v1"],
         r"a\.zip"),
    Case("a bomb in an SB3 zip", zip_of("a.zip", data=b"{" + b" " * (40 << 20) + b"}", policy__pth=b""),
         ["eval", "sb3:a.zip", "--env", "Pendulum-v1"], r"a\.zip.*(limit|larger|too large)"),
    Case("a hostile SB3 zip", zip_of("a.zip", data=b"{}", policy__pth=torch_bytes({"x": Hostile()})),
         ["eval", "sb3:a.zip", "--env", "Pendulum-v1"], r"a\.zip"),
    Case("a hostile vecnormalize.pkl",
         lambda f: (zip_of("a.zip", data=b"{}", policy__pth=torch_bytes({}))(f),
                    (f / "vecnormalize.pkl").write_bytes(pickle.dumps(Hostile()))),
         ["eval", "sb3:a.zip", "--env", "Pendulum-v1"], r"vecnormalize\.pkl"),
    Case("no such module", nothing, ["eval", "py:not_here:make", "--env", "Pendulum-v1"], "no module 'not_here'"),
    # places to write to
    Case("an output under a file", nothing, [*TRAIN, "good.npz", *QUICK, "--out", "good.npz"], r"good\.npz"),
    Case("an unwritable output", nothing, [*TRAIN, "good.npz", *QUICK, "--out", "/proc/runs"], "/proc/runs"),
    Case("collecting to an unwritable file", nothing,
         ["collect", "--env", "Pendulum-v1", "--policy", "random", "--steps", "10", "--out", "/proc/x.hdf5"], "/proc"),
    Case("collecting over a file", nothing,
         ["collect", "--env", "Pendulum-v1", "--policy", "random", "--steps", "10", "--out", "good.npz"], r"good\.npz"),
    Case("a new algorithm over a file", bytes_of("mine.py", b"precious"),
         ["new", "algo", "mine"], r"file exists.*mine\.py"),
    Case("a report of no run", nothing, ["report", "gone", "--out", "r.html"], "gone"),
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """good.npz, a stopped run and a finished run, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    cut_off = np.zeros(160, dtype=bool)
    cut_off[39::40] = True
    fields = {
        "observations": rng.normal(size=(160, 3)).astype(np.float32),
        "actions": rng.uniform(-2, 2, size=(160, 1)).astype(np.float32),
        "rewards": rng.normal(size=160).astype(np.float32),
        "terminated": np.zeros(160, dtype=bool),
        "truncated": cut_off,
    }
    np.savez(folder / "good.npz", **fields)
    sample, made = UniformSource.sample, iter(range(1, 10**9))

    def stopping(self, generators):
        if next(made) == 6:
            signal.raise_signal(signal.SIGTERM)
        return sample(self, generators)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TRAIN, "good.npz", *QUICK, "-q"]) == 0
        shutil.move(next(folder.glob("runs/*/*/*")), folder / "finished")
        patch.setattr(UniformSource, "sample", stopping)
        assert main([*TRAIN, "good.npz", *QUICK, "-q"]) == 143
        shutil.move(next(folder.glob("runs/*/*/*")), folder / "stopped")
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A fresh copy of the prepared folder, as the working folder; data homes point into it."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "stopped" / "config.json"
    config.write_text(config.read_text().replace(str(prepared), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minari").mkdir()  # Minari makes it whatever it is asked
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFRL_DATA_HOME", str(tmp_path / "home"))
    return tmp_path


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


def test_there_are_enough_cases_with_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 28


def test_the_prepared_inputs_are_good(folder, capsys):
    """Without spoiling anything each command works: the cases fail for the reason that they name."""
    assert main([*TRAIN, "good.npz", *QUICK]) == 0
    assert main(["resume", "stopped"]) == 0
    assert main(["resume", "finished"]) == 0
    assert main(["eval", "finished", "--env", "Pendulum-v1", "--episodes", "1"]) == 0
    npz()(folder)
    hdf5(folder)
    for name in ("bad.npz", "bad.hdf5"):
        assert main([*TRAIN, name, *QUICK]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_input_is_one_line_and_costs_nothing(folder, capfd, case):
    case.spoil(folder)
    before = listing(folder)
    typed = case.typed
    if typed[:1] == ["train"] and "--dataset" in typed and "--env" not in typed:
        typed = [*typed, "--env", "Pendulum-v1"]
    code = main(typed)
    out, err = capfd.readouterr()
    assert code == case.code, err
    assert err.count("\n") == 1, err
    assert err.startswith("offrl: ")
    assert "Traceback" not in out + err
    assert re.search(case.line, err), err
    assert len(err) < 600, "a line that can be read"
    assert listing(folder) == before


def test_a_missing_extra_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    assert main([*TRAIN, "minari:mujoco/hopper/medium-v0"]) == 1
    assert capsys.readouterr().err == (
        "offrl: this needs minari, which is not installed; run: pip install 'offrl[minari]'\n"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*TRAIN, "good.npz", *QUICK, "--tensorboard"]) == 1
    assert "pip install 'offrl[tensorboard]'" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_kept(folder, in_child):
    """A limit on the size of files, below the checkpoint's, stands for the full disk."""

    def command() -> int:
        limit = (folder / "stopped" / "checkpoint.pt").stat().st_size - 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return main(["resume", "stopped", "-q"])

    before = listing(folder)
    child = in_child(command)
    assert child.code == 1
    assert (
        child.err == "offrl: File too large: stopped/checkpoint-next.pt; go on with: offrl resume stopped\n"
    )
    changed = {name for name, data in listing(folder).items() if before.get(name) != data}
    assert changed <= {
        "stopped/metrics.csv",
        "stopped/timing.csv",
        "stopped/policy.json",
        "stopped/policy.safetensors",
    }
    assert main(["resume", "stopped", "-q"]) == 0
    finished = (folder / "finished" / "metrics.csv").read_bytes()
    assert (folder / "stopped" / "metrics.csv").read_bytes() == finished
