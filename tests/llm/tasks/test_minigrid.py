"""MiniGrid in words: what is told is what MiniGrid holds, the expert arrives, states are restored, transcripts read well."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.episodes import demonstrate
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task

pytest.importorskip("minigrid")
EMPTY, DOOR = "minigrid:MiniGrid-Empty-Random-6x6-v0", "minigrid:MiniGrid-DoorKey-5x5-v0"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", [EMPTY, DOOR])
def test_the_expert_arrives(name):
    task = load_task(name)
    found = demonstrate(task, task.prompts(6, generator()), generator(), 0.0)
    assert (found.paid > 0.3).all()
    assert not found.cut.any()


def test_what_is_told_is_what_minigrid_holds():
    task = load_task(DOOR)
    prompts = task.prompts(3, generator(1))
    env = task.environment()
    env.reset(prompts)
    for row, seed in enumerate(prompts.ids.tolist()):
        room = task.made(seed)
        text = task.vocabulary.text(prompts.tokens[row][prompts.mask[row]])
        assert f"at {room.agent_pos[0]},{room.agent_pos[1]} facing" in text
        assert "key at" in text
        assert "door at" in text
        (forward,) = task.vocabulary.ids("f")
        answer = env.step(torch.tensor([row]), torch.tensor([[forward]]))
        room.step(2)
        assert tuple(env.rooms[row].agent_pos) == tuple(room.agent_pos)
        x, y = task.vocabulary.ids(f"{room.agent_pos[0]}{room.agent_pos[1]}")
        assert answer.observations[0, 1:3].tolist() == [x, y]


def test_states_are_restored_for_some_rows_in_any_number():
    task = load_task(EMPTY)
    env = task.environment()
    env.reset(task.prompts(2, generator()))
    for word in task.vocabulary.ids("flrf"):
        env.step(torch.tensor([0, 1]), torch.full((2, 1), word))
    before = env.state()
    other = task.environment()
    other.restore({name: x[torch.tensor([1, 1, 0])] for name, x in before.items()})
    for copy, row in ((0, 1), (1, 1), (2, 0)):
        assert tuple(other.rooms[copy].agent_pos) == tuple(env.rooms[row].agent_pos)
        assert other.rooms[copy].agent_dir == env.rooms[row].agent_dir
        assert other.rooms[copy].step_count == env.rooms[row].step_count == 4


def test_transcripts_are_lines():
    task = load_task(EMPTY)
    found = demonstrate(task, task.prompts(1, generator()), generator(), 0.0)
    lines = task.vocabulary.text(found.row(0)).splitlines()
    assert len(lines) == int(found.mask.sum())
    assert all(line.startswith("> ") and " facing " in line for line in lines)


def test_it_trains():
    task = load_task(EMPTY)
    method, options = load_method("grpo"), LLMOptions(task=EMPTY, prompts=2, group=3, device="cpu")
    made = Learner(method, method.config(entropy=0.1), task, load_model("tiny:dense", task, 0), options)
    metrics = made.update()
    assert float(metrics["engine_gap"]) < 1e-4
    assert float(metrics["grad_norm"]) > 0
    assert options.task_name == EMPTY.replace(":", "-")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MiniGrid-Nowhere-v0", "no environment of MiniGrid"),
        ("CartPole-v1", "'CartPole-v1' is no environment of MiniGrid"),
        ("MiniGrid-GoToDoor-5x5-v0", "GoToDoor-5x5-v0 have no goal to walk to, and its mission is not told"),
        ("MiniGrid-FourRooms-v0", "wider than the ten cells"),
    ],
)
def test_a_wrong_id_is_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        load_task(f"minigrid:{name}")
