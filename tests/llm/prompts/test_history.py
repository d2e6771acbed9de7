"""Success rates of prompts from their own past."""

import torch

from offrl.llm.prompts.history import History


def seen(*visits, decay=0.5, size=3):
    h = History(size, decay)
    for rows, right, tried in visits:
        h.observe(None, torch.tensor(rows), torch.tensor(right), torch.tensor(tried))
    return h


def test_a_prompt_without_a_past_is_unknown():
    found = seen(([1], [2], [8])).predict(None, torch.tensor([0, 1]))
    assert found[0].isnan()
    assert float(found[1]) == 3 / 10


def test_old_counts_decay_at_visits_alone():
    h = seen(([0], [8], [8]), ([1], [0], [4]), ([0], [0], [2]))
    assert h.counts.tolist() == [[4, 2], [0, 4], [0, 0]]
    assert float(h.predict(None, torch.tensor([0]))) == 5 / 8


def test_a_prompt_that_comes_twice_in_a_batch_counts_twice_and_decays_once():
    h = seen(([2], [2], [2]), ([2, 2], [1, 3], [4, 4]))
    assert h.counts[2].tolist() == [5, 4]


def test_no_rate_is_ever_certain():
    h = seen(*[([0, 1], [0, 64], [64, 64])] * 30, decay=0.9)
    p = h.predict(None, torch.tensor([0, 1]))
    assert 0 < float(p[0]) < 0.01
    assert 0.99 < float(p[1]) < 1


def test_state_comes_back():
    one, other = seen(([1], [2], [8])), History(3, 0.5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.counts, other.counts)
