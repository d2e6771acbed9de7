"""Options of the parts that choose prompts, checked: an option of a part that is not in use is refused."""

from dataclasses import dataclass, fields
from typing import Literal

from offrl.errors import ConfigError
from offrl.llm.prompts.v0 import FEW

NEEDS = {  # first word of an option -> the options that must choose its part, and the choices
    "vas": {"sampler": "vas"},
    "budget": {"allocator": "knapsack"},
    "predictor": {"allocator": "knapsack"},
    "history": {"allocator": "knapsack", "predictor": "history"},
    "v0": {"predictor": "v0"},
    "stage": {"curriculum": "stages"},
    "hint": {"scaffold": "hints"},
    "hints": {"scaffold": "hints"},
}


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Which prompts, how many responses to each, with which help."""

    pool: int = 0
    """Prompts of a task that are drawn again and again; 0: always new ones. A data set is a pool of its own."""
    sampler: Literal["uniform", "vas"] = "uniform"
    """How prompts of a pool or a data set are drawn: each once before any comes again, or by how much their rewards
    vary."""
    vas_share: float = 0.5
    """Share of a batch that is drawn by scores, the rest uniformly."""
    vas_every: int = 28
    """Steps after which all prompts of the pool are scored anew."""
    vas_rollouts: int = 8
    """Responses a prompt that score it; they count as rollouts."""
    vas_diversity: float = 0.2
    """b in the score (1 - b) p (1 - p) + b diversity of the responses."""
    allocator: Literal["uniform", "knapsack"] = "uniform"
    """How many responses a prompt gets: --group each, or --group on average, where they teach most."""
    budget_low: int = 2
    """Responses to each prompt at least."""
    budget_high: int = 128
    """Responses to each prompt at most."""
    budget_value: Literal["information", "failures"] = "information"
    """What is maximized: Knapsack RL's chance of unequal rewards times p (1 - p)^2, or V_0's expected failures where
    one response succeeds."""
    predictor: Literal["history", "v0"] = "history"
    """Who says how likely a prompt is to be solved: its own past, or a model that knows those of other prompts."""
    history_decay: float = 0.7
    """What past responses to a prompt still weigh at its next visit."""
    v0_context: int = 256
    """Pairs of prompt and success rate that the predictor looks back at, 16 or more: it says nothing from fewer."""
    v0_weights: str = ""
    """Adapter trained by offrl.llm.prompts.v0.train; default: none, the frozen model's states as they are."""
    curriculum: Literal["none", "stages"] = "none"
    """Which prompts may be drawn: all, or those of a stage of difficulty."""
    stage_bounds: tuple[int, ...] = ()
    """Highest difficulty of each stage; default: three stages of about as many difficulties."""
    stage_order: Literal["rising", "falling"] = "rising"
    """Easy stages first, or as a control the hard ones."""
    stage_advance: Literal["steps", "plateau", "competence"] = "steps"
    """When the next stage begins: after --stage-steps; when accuracy on the stage has not risen for --stage-patience
    readings; when a reading reaches --stage-threshold."""
    stage_steps: int = 0
    """Steps of a stage; 0: an equal share of the run."""
    stage_every: int = 10
    """Steps over which an accuracy is read."""
    stage_patience: int = 3
    """Readings without a rise that end a stage."""
    stage_threshold: float = 0.8
    """Accuracy that ends a stage."""
    stage_replay: float = 0.0
    """Share of a batch that comes from earlier stages."""
    scaffold: Literal["none", "hints"] = "none"
    """Where all responses to a prompt fail: nothing, or hints, from abstract to concrete, until one succeeds."""
    hints: str = ""
    """Hints for the prompts of a data set, made by 'offrl llm hints make'; tiny tasks have their own."""
    hint_exempt: float = 0.15
    """Share of the run that passes without hints."""
    hint_tiers: tuple[str, ...] = ()
    """Kinds of hints in the file that are used, in order; default: all."""

    def __post_init__(self) -> None:
        self._check_use()
        for name in (
            "vas_every",
            "budget_low",
            "stage_every",
            "stage_patience",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.vas_rollouts < 2:
            raise ConfigError(f"vas_rollouts must be 2 or more, got {self.vas_rollouts}: one never varies")
        if self.v0_context < FEW:
            raise ConfigError(f"v0_context must be {FEW} or more, got {self.v0_context}")
        for name in ("pool", "stage_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("vas_share", "vas_diversity", "hint_exempt", "stage_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        for name in ("history_decay", "stage_replay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be 0 or more and below 1, got {getattr(self, name)}")
        if list(self.stage_bounds) != sorted(set(self.stage_bounds)) or min(self.stage_bounds, default=1) < 1:
            raise ConfigError(f"stage_bounds must rise from 1 or more, got {self.stage_bounds}")

    def _check_use(self) -> None:
        """Refuse what has no effect."""
        for field in fields(PromptOptions):
            needs = NEEDS.get(field.name.split("_")[0], {})
            missing = [
                f"--{option} {choice}" for option, choice in needs.items() if getattr(self, option) != choice
            ]
            if missing and getattr(self, field.name) != field.default:
                raise ConfigError(f"{field.name} has no effect without {missing[0]}: leave it out")
        used = {"plateau": ("stage_patience",), "competence": ("stage_threshold",), "steps": ("stage_steps",)}
        rules = {name for names in used.values() for name in names} | {"stage_every"}
        for field in fields(PromptOptions):
            wanted = (*used[self.stage_advance], *(() if self.stage_advance == "steps" else ("stage_every",)))
            if (
                field.name in rules
                and field.name not in wanted
                and getattr(self, field.name) != field.default
            ):
                raise ConfigError(
                    f"{field.name} has no effect with stage_advance {self.stage_advance}: leave it out"
                )

    @property
    def chosen_parts(self) -> list[str]:
        """The options of parts in use, such as ``--sampler vas``."""
        kinds = {"sampler": "uniform", "allocator": "uniform", "curriculum": "none", "scaffold": "none"}
        return [f"--{kind} {getattr(self, kind)}" for kind, no in kinds.items() if getattr(self, kind) != no]
