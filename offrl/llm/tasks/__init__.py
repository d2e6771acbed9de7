"""Tasks by name, and data sets as tasks."""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offrl.errors import ConfigError
from offrl.llm.tasks.task import Task

if TYPE_CHECKING:
    from offrl.llm.options import DataOptions
    from offrl.llm.tasks.prompts import PromptTask

TASKS = {  # name -> what it is
    "t1": "sum of two digits modulo 10; from random weights",
    "t2": "sums of 1 to 8 digits modulo 5; after sft with noise 0.3",
    "t2-hard": "the same modulo 10: the long prompts stay at chance",
    "t2-cliff": "the same modulo 20: a guess is right once in 20 times",
    "t3": "strings of 4 symbols with a known target distribution; model tiny:table",
    "t4a": "walks of 12 moves on a 5 x 5 grid to a goal that the prompt names; from random weights",
    "t4b": "the same from the centre to any of four corners: how many does a policy keep?",
    "t4c": "a key, then a door on a 7 x 7 grid, 30 moves; from random weights or after sft",
    "t4d-actor": "from the centre to one of four corners, named in half of the prompts; after sft, the actor of t4d",
    "t4d": "which corner should the actor (--actor RUN) try after it failed? the transcript tells",
    "t5": "sums of 2 to 4 digits with rewards for format, length and answer; after sft with noise 0.5",
    "t5-conditioned": "the same; a short response earns its length only if it is right",
    "t6": "a key shown once and asked for after a long corridor: --context supo; after sft with noise 0.2",
    "gui": "the next action on a small screen, for instructions of 1 to 6 operations; after sft with noise 0.4",
    "minigrid:ID": "a MiniGrid environment in words, such as minigrid:MiniGrid-Empty-Random-6x6-v0; after sft",
    "arithmetic": "600 word problems of one or two steps, 120 held out; a model with a tokenizer",
}

CHAIN_BASES = {"t2": 5, "t2-hard": 10, "t2-cliff": 20}


def load_task(name: str) -> Task:
    """A task.

    Raises:
        ConfigError: an unknown name.
    """
    from offrl.llm.tasks.chainsum import ChainSum
    from offrl.llm.tasks.corridor import Corridor
    from offrl.llm.tasks.grid import SIZES, Grid
    from offrl.llm.tasks.gui import Screen
    from offrl.llm.tasks.modsum import ModSum
    from offrl.llm.tasks.multi_reward import MultiReward
    from offrl.llm.tasks.string_target import StringTarget

    if name == "t4d":
        raise ConfigError(
            "task t4d needs an actor: pass --actor RUN, of offrl llm train sft --task t4d-actor"
        )
    if name == "arithmetic":
        raise ConfigError("task arithmetic is text: it needs a model with a tokenizer")
    if name == "gui":
        return Screen()
    if name == "t1":
        return ModSum()
    if name in SIZES:
        return Grid(name)
    if name.startswith("minigrid:"):
        from offrl.llm.tasks.minigrid import MiniGrid

        return MiniGrid(name)
    if name == "t6":
        return Corridor()
    if name == "t3":
        return StringTarget()
    if name in CHAIN_BASES:
        return ChainSum(name, CHAIN_BASES[name])
    if name in ("t5", "t5-conditioned"):
        return MultiReward(name, conditioned=name != "t5")
    raise ConfigError(f"unknown task {name!r}; there are {', '.join(TASKS)}")


def task_for(options: "DataOptions") -> Task:
    """The task that a run asks for.

    Raises:
        ConfigError: an unknown name, or prompts without rewards or without a tokenizer.
        DatasetError: a data set that cannot be read.
    """
    if not options.dataset and options.task != "arithmetic":
        if options.reward:
            raise ConfigError(f"task {options.task} has its own reward: leave --reward out")
        if options.actor and options.task != "t4d":
            raise ConfigError(f"task {options.task} has no other actor: leave --actor out")
        return _windowed(_retry(options) if options.actor else load_task(options.task), options)
    if options.context != "full":
        raise ConfigError("prompts of one turn need no window: leave --context out")
    if options.dataset:
        return _prompts(options, options.dataset, options.eval_dataset)
    own = resources.files("offrl.llm.tasks")
    files = [str(own / f"arithmetic{part}.jsonl") for part in ("", "_held_out")]
    rewards = options.reward or ("integer",)
    given = dataclasses.replace(options, prompt_key="prompt", answer_key="answer", reward=rewards)
    return _prompts(given, files[0], options.eval_dataset or files[1])


def _retry(options: "DataOptions") -> Task:
    from offrl.llm.models import load_model
    from offrl.llm.tasks.grid import Grid
    from offrl.llm.tasks.retry import Retry

    grid = Grid("t4d-actor")
    return Retry(grid, load_model(options.actor, grid, 0))


def _windowed(task: Task, options: "DataOptions") -> Task:
    """With the window that the options ask for."""
    if options.context == "full":
        return task
    if not hasattr(task, "request"):
        raise ConfigError(f"episodes of task {task.name} are not summarized: leave --context out")
    from offrl.llm.contexts import Window

    kind, size, own = options.context, options.context_window, cast(Any, task)
    environment = own.environment()
    turn = environment.longest_turn + environment.longest_answer
    own.window = Window(kind, size, options.summaries, own, task.max_prompt, turn)
    return task


def _prompts(options: "DataOptions", uri: str, held_out: str) -> "PromptTask":
    from offrl.llm.data import load_rows
    from offrl.llm.pretrained import load_tokenizer
    from offrl.llm.rewards import load_rewards
    from offrl.llm.tasks.prompts import PromptTask

    template, rewards = options.chat_template, load_rewards(options.reward)
    if template not in ("auto", "none"):
        template = Path(template).read_text(encoding="utf-8")
    words = load_tokenizer(options.model)

    def task(uri: str, name: str) -> PromptTask:
        return PromptTask(
            name, load_rows(uri), words, rewards, prompt_key=options.prompt_key,
            answer_key=options.answer_key, max_prompt=options.max_prompt, max_response=options.max_response,
            template=template,
        )  # fmt: skip

    found = task(uri, options.task_name)
    if held_out:
        found.held_out = task(held_out, dataclasses.replace(options, dataset=held_out).task_name)
        found.max_prompt = max(found.max_prompt, found.held_out.max_prompt)
    return found
