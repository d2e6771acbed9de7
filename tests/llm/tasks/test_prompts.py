"""Data sets as tasks: prompts, rewards a component, held-out rows, demonstrations."""

import dataclasses
import json

import pytest
import torch

from offrl.errors import ConfigError, DatasetError
from offrl.llm.options import LLMOptions
from offrl.llm.rollouts import demonstrated
from offrl.llm.tasks import task_for
from offrl.llm.text import Responses

ROWS = [{"q": f"{'x' * i}{i}+1?", "gold": {"value": i + 1}, "level": 1 + i % 2} for i in range(6)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(tmp_path, hugging_face, rows=ROWS, **given):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = LLMOptions(**{
        "model": hugging_face(), "dataset": str(path), "prompt_key": "q", "answer_key": "gold.value",
        "reward": ("integer", "regex:^[0-9]+$=0.25"), "chat_template": "none", "max_response": 5, **given,
    })  # fmt: skip
    return task_for(options)


def written(tmp_path, text, name=""):
    path = tmp_path / (name or f"{len(text)}.jinja")
    path.write_text(text)
    return str(path)


def responses(task, texts):
    rows = [task.vocabulary.response(text) for text in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return Responses(tokens, mask, torch.zeros(tokens.shape))


def test_prompts_are_the_rows_and_none_comes_twice_in_a_round(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face)
    prompts = task.prompts(6, generator())
    assert sorted(prompts.ids.tolist()) == list(range(6))
    for tokens, mask, row in zip(prompts.tokens, prompts.mask, prompts.ids.tolist(), strict=True):
        assert task.vocabulary.text(tokens[mask]) == ROWS[row]["q"]
        assert mask.tolist() == sorted(mask.tolist())
    assert prompts.levels.tolist() == [1 + i % 2 for i in prompts.ids.tolist()]
    assert prompts.limits.tolist() == [5] * 6
    assert task.levels == 2
    twice = task.prompts(9, generator()).ids
    assert twice.bincount().tolist().count(2) == 3
    assert not torch.equal(task.prompts(6, generator(1)).ids, prompts.ids)


def test_rewards_are_weighted_and_the_first_says_what_is_right(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face)
    prompts = task.chosen(torch.tensor([2, 2, 4, 5]))
    given = responses(task, ["3", "is 3", "4", "six"])
    rewards = task.rewards(prompts, given)
    assert {name: value.tolist() for name, value in rewards.items()} == {
        "integer": [1, 1, 0, 0], "regex": [0.25, 0, 0.25, 0],
    }  # fmt: skip
    assert task.success(prompts, given).tolist() == [True, True, False, False]


def test_a_reward_is_asked_once_for_a_batch_and_not_for_its_names(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face)
    calls = []
    usual = task.components[0]
    task.components[0] = dataclasses.replace(usual, call=lambda asked: calls.append(1) or usual.call(asked))
    assert list(task.rewards(task.prompts(1, generator()).rows(slice(0)), responses(task, ["1"]))) == [
        "integer",
        "regex",
    ]
    assert calls == []
    prompts, given = task.chosen(torch.tensor([0])), responses(task, ["1"])
    task.rewards(prompts, given), task.success(prompts, given)
    assert calls == [1]
    task.success(task.chosen(torch.tensor([1])), responses(task, ["1"]))
    assert calls == [1, 1]


def test_columns_that_only_some_rows_have_are_none_elsewhere(tmp_path, hugging_face):
    """In every batch, as for TRL, whose data sets are tables."""
    own = tmp_path / "own.py"
    own.write_text("def known(completions, extra):\n    return [0.0 if x is None else x for x in extra]\n")
    rows = [*ROWS[:2], {**ROWS[2], "extra": 3.0}]
    task = made(tmp_path, hugging_face, rows, reward=(f"{own}:known",))
    for ids, want in (([0, 1], [0.0, 0.0]), ([0, 2], [0.0, 3.0])):
        given = task.rewards(task.chosen(torch.tensor(ids)), responses(task, ["a", "b"]))
        assert given["known"].tolist() == want


def test_final_answers_are_equal_where_they_say_the_same(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face, max_response=20)
    texts = ["is 7", "7.0", "8", "no\nyes", "yes ", "", "1 or 7"]
    ids = task.final_answers(task.chosen(torch.zeros(7, dtype=torch.int64)), responses(task, texts)).tolist()
    assert ids[0] == ids[1] == ids[6]
    assert ids[3] == ids[4]
    assert ids[5] == -1
    assert len(set(ids)) == 4
    assert min(ids) == -1


def test_special_tokens_and_padding_are_not_part_of_a_response(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face, reward=("regex:^7$",))
    given = responses(task, ["7", "longer"])
    assert task.rewards(task.chosen(torch.tensor([0, 0])), given)["regex"].tolist() == [1, 0]


def test_demonstrations_end_and_are_masked_beyond(tmp_path, hugging_face):
    rows = [{"q": "a", "gold": {"value": 1}, "response": "long answer"}, {"q": "b", "gold": {"value": 2}}]
    rows += [{"q": "c", "gold": {"value": 3}, "response": None}]  # as tables have it that some rows lack
    task = made(tmp_path, hugging_face, rows)
    tokens = task.demonstrations(task.chosen(torch.tensor([0, 1, 2])), generator(), 0.0)
    given = demonstrated(tokens, task.vocabulary.pad)
    assert task.vocabulary.text(given.tokens[0][given.mask[0]]) == "long "
    assert given.tokens[1][given.mask[1]].tolist() == task.vocabulary.response("2")
    assert given.tokens[2][given.mask[2]].tolist() == task.vocabulary.response("3")
    assert given.lengths.tolist() == [5, 2, 2]
    assert int(given.tokens.min()) >= 0
    with pytest.raises(ConfigError, match="noise must be 0"):
        task.demonstrations(task.chosen(torch.tensor([0])), generator(), 0.1)


def test_long_prompts_are_left_out(tmp_path, hugging_face):
    task = made(tmp_path, hugging_face, max_prompt=6)
    assert (task.size, task.left_out) == (3, 3)
    assert task.asked == [row["q"] for row in ROWS[:3]]
    assert [task.vocabulary.text(torch.tensor(ids)) for ids in task.tokens] == task.asked
    with pytest.raises(DatasetError, match="all prompts of own are empty or longer"):
        made(tmp_path, hugging_face, max_prompt=2)


def test_evaluation_prompts_may_be_held_out(tmp_path, hugging_face):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ROWS[3]))
    task = made(tmp_path, hugging_face, eval_dataset=str(other))
    assert task.held_out.asked == [ROWS[3]["q"]]
    assert made(tmp_path, hugging_face).held_out is None


def test_the_arithmetic_prompts_are_solved_by_their_own_responses(hugging_face):
    task = task_for(LLMOptions(model=hugging_face(), task="arithmetic", max_response=40))
    assert (task.size, task.held_out.size, task.levels) == (600, 120, 3)
    assert not {*task.asked} & {*task.held_out.asked}
    for part in (task, task.held_out):
        prompts = part.chosen(torch.arange(part.size))
        given = demonstrated(part.demonstrations(prompts, generator(), 0.0), part.vocabulary.pad)
        assert part.success(prompts, given).all()
    for row in task.rows:
        formula, answer = row["response"].replace("x", "*").split("=")
        assert eval(formula) == int(answer) == int(row["answer"]) >= 0


def test_mistakes_are_one_line(tmp_path, hugging_face):
    for given, says in (
        ({"reward": ()}, "pass --reward, for instance --reward integer"),
        ({"rows": [*ROWS, {"q": None}]}, "prompt 7 of own is neither text nor messages .*: 'None'"),
        ({"rows": [{"q": 12}]}, "prompt 1 of own is neither text"),
        ({"rows": [{"q": []}]}, "prompt 1 of own is neither text"),
        ({"rows": [{"q": [{"content": "hi"}]}]}, "prompt 1 of own is neither text"),
        ({"chat_template": written(tmp_path, "{{ m")}, "chat template does not take prompt 1 of own: Templ"),
        ({"chat_template": written(tmp_path, "{{ raise_exception('no') }}")}, "prompt 1 of own: .*: no"),
        (
            {"eval_dataset": written(tmp_path, '{"x": "1"}', "test.jsonl")},
            "^test has no 'q'; its columns are x",
        ),
        ({"prompt_key": "prompt"}, "own has no 'prompt'; its columns are q, gold, level"),
        (
            {"rows": [{"q": "a", "gold": {"value": 1}, "level": 0}]},
            "levels of own must be whole numbers from 1",
        ),
        ({"rows": [{"q": "a", "gold": {"value": 1}, "level": 10**9}]}, "from 1 to 1000, got 1000000000"),
        (
            {"rows": [{"q": "a", "gold": {"value": 1}, "level": "Level 5"}]},
            "levels of own must be .* got 'Level 5'",
        ),
        (
            {"rows": [*ROWS, {"q": "a", "gold": {"value": "none"}}]},
            "answer 7 of own does not fit --reward integer: 'none' has no number",
        ),
        ({"rows": [{"q": "a", "gold": {"value": 1}, "level": None}]}, "levels of own must be .* got None"),
        ({"rows": [{"q": "a", "gold": {"value": 1}, "level": 2.5}]}, "levels of own must be .* got 2.5"),
    ):
        with pytest.raises((ConfigError, DatasetError), match=says):
            made(tmp_path, hugging_face, **given)
    with pytest.raises(ConfigError, match="leave --reward out"):
        task_for(LLMOptions(reward=("integer",)))
    with pytest.raises(ConfigError, match="leave --eval-dataset out"):
        LLMOptions(eval_dataset="x.jsonl")
