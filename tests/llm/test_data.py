"""Rows of prompts from files and the hub."""

import json
import sys
import types

import pytest

from offrl.cli import one_line
from offrl.errors import DatasetError
from offrl.llm.data import field, load_rows

ROWS = [
    {"prompt": "1+1?", "answer": "2", "reward_model": {"ground_truth": "2"}},
    {"prompt": "é", "answer": None},
]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert load_rows(str(tmp_path / "a.jsonl")) == ROWS
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), tmp_path / "a.parquet")
    assert load_rows(str(tmp_path / "a.parquet")) == ROWS[:1]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "own.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "1 + 1 =", "answer": "2"}\n')
    assert load_rows(str(tmp_path / "own.jsonl")) == [{"prompt": "1 + 1 =", "answer": "2"}]


def test_only_line_feeds_end_rows(tmp_path):
    """JSON writes U+2028 and U+0085 as they are."""
    rows = [{"prompt": "two\u2028lines\x85more\x0b\x1c", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for written in (text, text + "\n", text.replace("\n", "\r\n") + "\r\n"):
        (tmp_path / "a.jsonl").write_bytes(written.encode())
        assert load_rows(str(tmp_path / "a.jsonl")) == rows


def test_the_hub_is_asked_for_a_split(monkeypatch):
    calls = []
    fake = types.SimpleNamespace(load_dataset=lambda *a, **k: calls.append((a, k)) or [{"prompt": "x"}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert load_rows("hf:someone/set") == [{"prompt": "x"}]
    load_rows("hf:someone/set:test")
    assert calls == [(("someone/set",), {"split": "train"}), (("someone/set",), {"split": "test"})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match="needs the library datasets; run: pip install datasets"):
        load_rows("hf:someone/set")


def test_what_the_hub_cannot_give_is_one_line(monkeypatch):
    def refuse(name, split):
        raise ValueError("Config name is missing.\nPlease pick one among: main, socratic")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=refuse))
    with pytest.raises(
        DatasetError, match=r"hf:a/b cannot be loaded: Config name is missing\. Please pick one"
    ):
        load_rows("hf:a/b")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    for name in ("no.jsonl", "no.parquet"):
        with pytest.raises(FileNotFoundError) as caught:
            load_rows(str(tmp_path / name))
        assert one_line(caught.value) == f"No such file or directory: {tmp_path / name}"


def test_keys_go_into_dictionaries():
    assert field(ROWS[0], "reward_model.ground_truth", "a") == "2"
    assert field({"a.b": 1, "a": {"b": 2}}, "a.b", "x") == 1
    for key in ("question", "reward_model.text", "prompt.x"):
        with pytest.raises(
            DatasetError, match=f"a has no {key!r}; its columns are prompt, answer, reward_model"
        ):
            field(ROWS[0], key, "a")


def test_damaged_parquet_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(60) + data[64:])
    with pytest.raises(DatasetError, match=r"a\.parquet is not Parquet, or damaged"):
        load_rows(str(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"prompt": 1}\n{"prompt"', "line 2"),
        ("a.jsonl", b"[1]", "line 1: an object"),
        ("a.jsonl", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b"\n", "has no rows"),
        ("a.jsonl", b'{"a": 1}\n{"prompt": ' + b"9" * 5000 + b"}", "line 2: Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, "line 1: maximum recursion depth|line 1: Stack overflow"),
        ("a.parquet", b"PAR", "is not Parquet"),
        ("a.csv", b"", "must be FILE.jsonl"),
    ],
)
def test_a_damaged_file_is_one_line(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=says) as caught:
        load_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
