"""Rewards from names and files, of both signatures, weighted."""

import pytest

from offrl.errors import ConfigError
from offrl.llm.rewards import Asked, absolute, load_reward, load_rewards, split_weight

OWN = """
SEEN = {}

def short(completions, **kwargs):
    SEEN.update(kwargs)
    return [None if not c else -float(len(c)) for c in completions]

def few(completions, difficulty):
    return [d * (c[0]["content"] == "yes" if isinstance(c, list) else 0) for c, d in zip(completions, difficulty)]

def score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "mine"
    return {"score": solution_str == ground_truth, "index": extra_info["index"]}

def plain(solution_str, ground_truth, **_):
    return 0.5

def all_by_name(**given): return [float(len(c)) for c in given["completions"]]
def neither(text): return 0.0
def broken(completions): raise KeyError("oh")
def too_few(completions): return [1.0]
def endless(completions): return [float("inf")] * len(completions)
def large(completions): return [-1e300] * len(completions)
def fine(completions): return [1.0] * len(completions)
def leaves(completions): exit(0)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(OWN)
    return path


def asked(chat=False):
    rows = [
        {"prompt": "a?", "answer": "yes", "difficulty": 2, "data_source": "mine", "extra_info": {"index": i}}
        for i in range(3)
    ]
    prompts = [[{"role": "user", "content": "a?"}] if chat else "a?"] * 3
    return Asked(rows, prompts, ["yes"] * 3, ["yes", "no", ""], [[1, 2], [3], []])


def test_trls_signature_gets_columns_prompts_and_ids(own):
    reward = load_reward(f"{own}:short")
    assert (reward.name, reward.weight) == ("short", 1.0)
    assert reward(asked()) == [-3.0, -2.0, 0.0]
    seen = reward.call.__closure__
    given = next(cell.cell_contents for cell in seen if callable(cell.cell_contents)).__globals__["SEEN"]
    assert given["prompts"] == ["a?"] * 3
    assert given["completion_ids"] == [[1, 2], [3], []]
    assert given["answer"] == ["yes"] * 3
    assert "prompt" not in given


def test_a_file_may_hold_dataclasses_with_annotations_as_text(own):
    own.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Rule:\n    least: int = 2\n"
        "def long(completions, **kwargs): return [float(len(c) > Rule().least) for c in completions]\n"
    )
    assert load_reward(f"{own}:long")(asked()) == [1.0, 0.0, 0.0]


def test_trls_signature_may_be_keywords_alone(own):
    assert load_reward(f"{own}:all_by_name")(asked()) == [3.0, 2.0, 0.0]


def test_trls_completions_are_messages_where_prompts_are(own):
    reward = load_reward(f"{own}:few")
    assert reward(asked(chat=True)) == [2.0, 0.0, 0.0]
    assert reward(asked()) == [0.0, 0.0, 0.0]


def test_verls_signature(own):
    assert load_reward(f"{own}:score")(asked()) == [1.0, 0.0, 0.0]
    assert load_reward(f"{own}:plain=-2")(asked()) == [0.5] * 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("integer", ("integer", 1.0)), ("integer=0.5", ("integer", 0.5)), ("my.py:f=-1e-2", ("my.py:f", -0.01)),
        ("regex:x=y", ("regex:x=y", 1.0)), ("regex:x=5=1", ("regex:x=5", 1.0)), ("a=", ("a=", 1.0)),
    ],
)  # fmt: skip
def test_weights(text, parts):
    assert split_weight(text) == parts


def test_specifications_hold_from_any_folder(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert absolute("my.py:short=2") == f"{own}:short=2"
    assert absolute("integer=2") == "integer=2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("my.py:neither", "takes \\(text\\); a reward takes"),
        ("my.py:broken", "reward broken raised KeyError: 'oh'"),
        ("my.py:too_few", "returned 1 values for 3 responses"),
        ("my.py:endless", "endless is inf, too large a number"),
        ("my.py:large", "large is -1e\\+300, too large a number"),
        ("my.py:fine=1e39", "fine is 1, too large a number"),
        ("my.py:fine=1e400", "the weight of --reward my.py:fine=1e400 is too large"),
        ("my.py:leaves", "reward leaves raised SystemExit: 0"),
        ("leaving.py:f", "cannot be imported: SystemExit"),
        ("my.py:nothing", "has no function 'nothing'"),
        ("other.py:f", "there is no other.py"),
        ("wrong.py:f", "cannot be imported: SyntaxError"),
        ("correct", "unknown verifier 'correct'"),
    ],
)
def test_a_mistake_is_one_line(text, says, own, monkeypatch):
    monkeypatch.chdir(own.parent)
    (own.parent / "wrong.py").write_text("def f(:")
    (own.parent / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=says) as caught:
        load_reward(text)(asked())
    assert "\n" not in str(caught.value)


def test_rewards_without_any_weight_are_refused(own):
    with pytest.raises(ConfigError, match="all rewards weigh 0"):
        load_rewards(("integer=0", f"{own}:short=0"))
    assert [reward.weight for reward in load_rewards(("integer=0", f"{own}:short"))] == [0.0, 1.0]


def test_two_of_one_name_are_refused(own):
    with pytest.raises(ConfigError, match="two rewards are called 'integer'"):
        load_rewards(("integer", "integer=0.5"))
