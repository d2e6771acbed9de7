"""Which prompts a batch holds, how many responses each gets, and what helps where none succeeds.

Four kinds of parts, any of which goes with any loss:

    sampler      which prompts of the pool                 uniform, vas
    allocator    how many responses each of them gets      uniform, knapsack
    curriculum   which prompts may be drawn yet            none, stages
    scaffold     hints where all responses failed          none, hints

An allocator asks a predictor (``history`` or ``v0``) how likely each prompt is to be solved. A new part is one file
that offers what its kind does (``Sampler``, ``Predictor``, ... in ``parts``), and a name in ``parts``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What is known of a part without loading it."""

    option: str
    what: str
    source: str


PARTS = {
    "vas": About("--sampler vas", "prompts by how much their rewards vary", "arXiv:2509.21268"),
    "knapsack": About(
        "--allocator knapsack", "responses where they teach most, in sum as many", "arXiv:2509.25849"
    ),
    "v0": About("--predictor v0", "success rates of prompts, from those of others", "arXiv:2602.03584"),
    "stages": About("--curriculum stages", "easy prompts first", "arXiv:2508.11360"),
    "hints": About("--scaffold hints", "a hint in the prompt where all responses fail", "arXiv:2510.19807"),
}
