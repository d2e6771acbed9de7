"""The curriculum: buckets, rules on scripted accuracies, what is drawn when, and its state."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.prompts.stages import Stages, thirds

LEVELS = torch.tensor([3, 1, 2, 6, 5, 4, 1, 8])
BOUNDS = (2, 5, 8)


def stages(**given):
    return Stages(LEVELS, BOUNDS, **given)


def run(made, accuracies, tried=10):
    """The stage after each step of these accuracies on its own prompts."""
    found = []
    for a in accuracies:
        rows = (made.buckets == made.stage).nonzero()[:1, 0]
        made.observe(rows, torch.tensor([a * tried]), torch.tensor([tried]))
        found.append(made.stage)
    return found


def test_every_prompt_is_in_one_stage_and_difficulty_never_falls():
    made = stages()
    assert made.buckets.tolist() == [1, 0, 0, 2, 1, 1, 0, 2]
    for low, high in ((0, 1), (1, 2)):
        assert LEVELS[made.buckets == low].max() < LEVELS[made.buckets == high].min()
    assert stages(order="falling").buckets.tolist() == [1, 2, 2, 0, 1, 1, 2, 0]


def test_three_stages_of_about_as_many_difficulties():
    assert thirds(range(1, 9)) == (3, 6, 8)
    assert thirds(range(1, 7)) == (2, 4, 6)
    assert thirds([1, 2]) == (1, 2)
    assert thirds([4]) == (4,)
    assert thirds([1, 5, 100]) == (1, 5, 100)


def test_bounds_must_cover_all_prompts_and_leave_no_stage_empty():
    with pytest.raises(ConfigError, match="end at 5, but there are prompts of difficulty 8"):
        Stages(LEVELS, (2, 5))
    with pytest.raises(ConfigError, match="stage 2 of 3 holds no prompt: pass other --stage-bounds"):
        Stages(torch.tensor([1, 9]), (2, 5, 9))


def test_fixed_steps():
    assert run(stages(steps=3), [0.5] * 8) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_a_plateau_is_some_readings_without_a_rise():
    """Readings of two steps: 0.2, 0.4, 0.4, 0.3 -> two without a rise."""
    made = stages(advance="plateau", every=2, patience=2)
    assert run(made, [0.1, 0.3, 0.4, 0.4, 0.5, 0.3, 0.3]) == [0] * 7
    assert run(made, [0.3]) == [1]
    assert run(made, [0.1, 0.1, 0.2, 0.2]) == [1] * 4


def test_competence_is_a_reading_at_the_threshold():
    made = stages(advance="competence", every=2, threshold=0.6)
    assert run(made, [0.9, 0.2, 0.9, 0.3, 0.6, 0.6]) == [0, 0, 0, 1, 1, 2]
    assert run(made, [1.0] * 4) == [2] * 4


def test_only_the_stages_own_prompts_count():
    made = stages(advance="competence", every=1, threshold=0.6, replay=0.5)
    made.stage = 1
    found = made.observe(torch.tensor([0, 1, 2]), torch.tensor([0, 8, 8]), torch.tensor([8, 8, 8]))
    assert made.stage == 1
    assert float(found["stage_success"]) == 0.0
    assert float(found["replayed"]) == pytest.approx(2 / 3)


def test_no_prompt_comes_before_its_stage_and_replay_is_the_floor_of_its_share():
    made = stages(steps=1, replay=0.2)
    assert [(n, m.tolist()) for n, m in made.parts(16)] == [(16, (made.buckets == 0).tolist())]
    made.stage = 2
    (own, mine), (old, earlier) = made.parts(16)
    assert (own, old) == (13, 3)
    assert mine.tolist() == (made.buckets == 2).tolist()
    assert earlier.tolist() == (made.buckets < 2).tolist()
    assert [n for n, _ in made.parts(13)] == [11, 2]  # of 2.6
    assert stages(steps=1).parts(16)[0][0] == 16


def test_a_stage_goes_on_where_it_was():
    one = stages(advance="plateau", every=3, patience=1)
    script = [0.1, 0.5, 0.3, 0.4, 0.2]
    run(one, script)
    other = stages(advance="plateau", every=3, patience=1)
    other.load_state_dict(one.state_dict())
    later = [0.1, 0.4, 0.3, 0.2, 0.2]
    assert run(one, later) == run(other, later)
    assert one.stage == 1
