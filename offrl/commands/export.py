"""``offrl export RUN``: a trained policy as a file for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from offrl.commands.arguments import parse
from offrl.export.lerobot import export_lerobot
from offrl.export.policy import BATCH_SIZES, ExportResult, Format, export_policy


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a policy's deterministic action as ONNX, torch.export or a stable-baselines3 agent, normalizer inside; or
    the policy, chunks and all, as a plug-in of LeRobot.

    The file is compared with the policy first; an older file stays if they differ.
    """

    source: tyro.conf.Positional[str]
    """What to export: run:DIR or DIR (a run or policy folder), sb3:FILE.zip."""
    format: Format | Literal["huggingface", "lerobot"]
    """onnx: FILE.onnx; torch: FILE.pt2, for torch.export.load; sb3: FILE.zip, for TD3.load or SAC.load; lerobot: a new
    folder, with a package that lerobot-eval loads it by; huggingface: a new folder, of a language model's run, with its
    adapter merged into the base model."""
    out: Path
    """File to write; replaced if it exists."""
    env: str | None = None
    """Gymnasium id whose spaces an sb3 agent gets, or whose parts a policy for LeRobot sees; default: the run's own."""


def main(argv: list[str]) -> int:
    """``offrl export ...``."""
    options = parse(ExportOptions, "offrl export", argv)
    if options.format == "huggingface":
        from offrl.llm.pretrained import export

        export(Path(options.source.removeprefix("run:")), options.out)
        print(f"written to {options.out}: a Hugging Face folder")
        return 0
    if options.format == "lerobot":
        print("\n".join(export_lerobot(options.source, options.out, options.env)))
        return 0
    result = export_policy(options.source, options.out, options.format, env=options.env)
    print(describe(result), flush=True)
    return 0


def describe(result: ExportResult) -> str:
    """The result as lines for people."""
    what = {"onnx": "ONNX", "torch": "torch.export"}.get(result.format, f"stable-baselines3 {result.agent}")
    sizes = ", ".join(map(str, BATCH_SIZES))
    lines = [
        f"written to {result.path}: {what}, {result.path.stat().st_size / 1e6:.2f} MB",
        f"its actions equal the policy's within {result.error:.1e}, at batch sizes {sizes}",
    ]
    return "\n".join([*lines, *([result.sampling] if result.sampling else [])])
