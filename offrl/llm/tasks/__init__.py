"""Tasks by name."""

from offrl.errors import ConfigError
from offrl.llm.tasks.task import Task

TASKS = {  # name -> what it is
    "t1": "sum of two digits modulo 10; from random weights",
    "t2": "sums of 1 to 8 digits modulo 5; after sft with noise 0.3",
    "t2-hard": "the same modulo 10: the long prompts stay at chance",
    "t3": "strings of 4 symbols with a known target distribution; model tiny:table",
    "t5": "sums of 2 to 4 digits with rewards for format, length and answer; after sft with noise 0.5",
    "t5-conditioned": "the same; a short response earns its length only if it is right",
}


def load_task(name: str) -> Task:
    """A task.

    Raises:
        ConfigError: an unknown name.
    """
    from offrl.llm.tasks.chainsum import ChainSum
    from offrl.llm.tasks.modsum import ModSum
    from offrl.llm.tasks.multi_reward import MultiReward
    from offrl.llm.tasks.string_target import StringTarget

    if name == "t1":
        return ModSum()
    if name == "t3":
        return StringTarget()
    if name in ("t2", "t2-hard"):
        return ChainSum(name, 5 if name == "t2" else 10)
    if name in ("t5", "t5-conditioned"):
        return MultiReward(name, conditioned=name != "t5")
    raise ConfigError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
