"""A pool keeps different prompts; a walk meets each of them before any comes again."""

import torch

from offrl.llm.prompts.pool import Pool, Walk
from offrl.llm.tasks import load_task

EVERY = torch.ones(7, dtype=torch.bool)


def walk(size=7, seed=0):
    return Walk(size, torch.Generator().manual_seed(seed))


def test_equal_prompts_are_kept_once_and_found_by_their_ids():
    prompts = load_task("t1").prompts(300, torch.Generator().manual_seed(0))
    pool = Pool(prompts)
    assert len(pool) == len(prompts.ids.unique()) < 300
    asked = prompts.rows(torch.tensor([5, 3, 299]))
    assert torch.equal(pool.prompts.rows(pool.rows(asked)).tokens, asked.tokens)


def test_each_is_met_once_a_round():
    w = walk()
    drawn = torch.cat([w.draw(3, EVERY) for _ in range(7)])
    for part in drawn.split(7):
        assert sorted(part.tolist()) == list(range(7))
    assert not torch.equal(drawn[:7], drawn[7:14])


def test_only_allowed_ones_come_and_the_others_keep_their_turn():
    w, some = walk(), torch.tensor([True, False, True, False, True, False, False])
    before = w.draw(2, ~some)
    drawn = w.draw(7, some)
    assert set(drawn.tolist()) == {0, 2, 4}
    assert drawn.bincount(minlength=7)[[0, 2, 4]].max() == 3
    after = w.draw(2, ~some)
    assert {*before.tolist(), *after.tolist()} == {1, 3, 5, 6}
    assert w.draw(0, EVERY).tolist() == []


def test_a_walk_goes_on_where_it_was():
    one = walk()
    one.draw(5, EVERY)
    state = one.state_dict()
    other = walk(seed=9)
    other.load_state_dict(state)
    assert torch.equal(one.draw(11, EVERY), other.draw(11, EVERY))
