"""A torch file gives tensors and plain containers, and runs nothing."""

import collections
import io
import pickle
import sys
import types
import zipfile

import pytest
import torch

from offrl.errors import PolicyError
from offrl.nn.plain_pickle import read_plain


def same(a, b):
    if isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    return a == b


def test_tensors_and_containers_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    value = {
        "a": base[1:, ::2],
        "b": collections.OrderedDict(w=torch.nn.Parameter(torch.ones(2)), half=torch.ones(2).half()),
        "c": [1, 2.5, "text", b"raw", None, True],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(4),
    }
    torch.save(value, tmp_path / "x.ckpt")
    found = read_plain(tmp_path / "x.ckpt")
    assert same(found, value)
    assert found["a"].untyped_storage().nbytes() == 4 * 4  # its own numbers, not all that it was a view of


def test_settings_become_plain_dicts(tmp_path, monkeypatch):
    """omegaconf is not there: classes of its names are pickled in its layout, and never imported on reading."""
    config = types.ModuleType("omegaconf.dictconfig")
    nodes = types.ModuleType("omegaconf.nodes")

    class DictConfig:
        pass

    class AnyNode:
        pass

    for module, cls in ((config, DictConfig), (nodes, AnyNode)):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    node, outer = AnyNode(), DictConfig()
    node.__dict__ |= {"_metadata": None, "_val": 16}
    outer.__dict__ |= {"_metadata": None, "_content": {"horizon": node}}
    torch.save({"cfg": outer}, tmp_path / "x.ckpt")
    monkeypatch.setitem(sys.modules, "omegaconf.nodes", None)
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", None)
    assert read_plain(tmp_path / "x.ckpt") == {"cfg": {"horizon": 16}}


class Evil:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Evil(eval, "1/0"),
        Evil(print, "x"),
        Evil(getattr, "x", "upper"),
        Evil(torch.load, "x"),
        torch.nn.Linear(1, 1),
    ],
    ids=["eval", "print", "getattr", "load", "module"],
)
def test_any_other_name_is_refused_and_named(tmp_path, value):
    torch.save({"x": value}, tmp_path / "x.ckpt")
    with pytest.raises(
        PolicyError, match=r"it names \S+, which is neither a tensor nor a plain container; refused"
    ):
        read_plain(tmp_path / "x.ckpt")


def rewritten(tmp_path, change):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "good.ckpt")
    out = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "good.ckpt") as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            kept = change(name, old.read(name))
            if kept is not None:
                new.writestr(name, kept)
    (tmp_path / "bad.ckpt").write_bytes(out.getvalue())
    return tmp_path / "bad.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, b: None if "data/0" in n else b, "are missing"),
        (lambda n, b: b[:-4] if "data/0" in n else b, "are 12 bytes, not 4"),
        (lambda n, b: None if n.endswith("data.pkl") else b, "no data.pkl"),
        (lambda n, b: b[:-20] if n.endswith("data.pkl") else b, "damaged"),
        (
            lambda n, b: b.replace(b"K\x04\x85", b"K\x05\x85") if n.endswith("data.pkl") else b,
            "beyond its numbers",
        ),
    ],
)
def test_damaged_files_give_one_line(tmp_path, change, message):
    with pytest.raises(PolicyError, match=message):
        read_plain(rewritten(tmp_path, change))


def test_spoilt_bytes_raise_nothing_else(tmp_path):
    g = torch.Generator().manual_seed(0)
    torch.save({"w": torch.arange(4.0), "n": [1, {"a": "b"}]}, tmp_path / "good.ckpt")
    with zipfile.ZipFile(tmp_path / "good.ckpt") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        good = archive.read(name)
    refused = 0
    for _ in range(100):
        spoilt = bytearray(good)
        for at in torch.randint(len(good), (3,), generator=g).tolist():
            spoilt[at] = int(torch.randint(256, (1,), generator=g))
        file = rewritten(tmp_path, lambda n, b, s=bytes(spoilt): s if n.endswith("data.pkl") else b)
        try:
            read_plain(file)
        except PolicyError:
            refused += 1
    assert refused > 50  # some bytes are parts of names or numbers, which may differ


def test_what_is_no_torch_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PolicyError, match="damaged"):
        read_plain(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "y")
