"""Write the arithmetic word prompts of task ``arithmetic``: 600 to train on and 120 held out, always the same ones.

python scripts/make_arithmetic.py offrl/llm/tasks
"""

import json
import random
import sys
from pathlib import Path

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo"]
THINGS = ["apples", "books", "coins", "pens", "shells", "stamps", "stones", "tickets"]
ASK = " Answer with the number."


def one_step(rng: random.Random) -> tuple[str, str, int]:
    """A sum or a difference."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 20), rng.randint(1, 9)
    if rng.random() < 0.5:
        return f"{name} has {a} {thing} and gets {b} more. How many {thing} now?", f"{a} + {b}", a + b
    a += b
    return f"{name} has {a} {thing} and gives {b} away. How many {thing} are left?", f"{a} - {b}", a - b


def product(rng: random.Random) -> tuple[str, str, int]:
    """A product."""
    thing, a, b = rng.choice(THINGS), rng.randint(2, 9), rng.randint(2, 9)
    return f"There are {a} boxes with {b} {thing} each. How many {thing} in all?", f"{a} x {b}", a * b


def two_steps(rng: random.Random) -> tuple[str, str, int]:
    """A product, and a difference."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 9), rng.randint(3, 9)
    c = rng.randint(1, a * b - 1)
    text = (
        f"{name} fills {a} bags with {b} {thing} each and gives {c} {thing} away. How many {thing} are left?"
    )
    return text, f"{a} x {b} - {c}", a * b - c


def rows(count: int, rng: random.Random, seen: set[str]) -> list[dict[str, object]]:
    """Rows of three levels in turn, none twice."""
    found: list[dict[str, object]] = []
    while len(found) < count:
        level = len(found) % 3 + 1
        text, formula, answer = (one_step, product, two_steps)[level - 1](rng)
        if text in seen:
            continue
        seen.add(text)
        row = {
            "prompt": text + ASK,
            "answer": str(answer),
            "response": f"{formula} = {answer}",
            "level": level,
        }
        found.append(row)
    return found


def main(folder: Path) -> None:
    """Both files."""
    rng, seen = random.Random(0), set[str]()
    for name, count in (("arithmetic.jsonl", 600), ("arithmetic_held_out.jsonl", 120)):
        lines = [json.dumps(row) + "\n" for row in rows(count, rng, seen)]
        (folder / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
