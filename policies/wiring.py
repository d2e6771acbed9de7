"""What each input of a policy is made of, by name: which part of what an environment shows, in which order and form.

A wiring file is TOML, one table for each input of the policy:

    [inputs."observation.state"]
    from = ["agent_pos", "block_pose[0:2]"]     # parts of the environment, side by side; some columns of one

    [inputs."observation.image"]
    camera = "pixels"                           # a part with three sizes
    layout = "HWC"                              # or CHW: how the environment lays the image out
    resize = [96, 96]                           # needed where the policy was trained on another size

Nothing is ever matched by its place: where a policy has no file, each of its inputs must be the name of a part (also
``KEY[FROM:TO]``) with the same shape. Bytes become numbers from 0 to 1 inside the policy, not here.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.data.environments import key_columns
from offrl.errors import ConfigError

Shape = tuple[int, ...]
Parts = Sequence[tuple[str, Shape]]  # name and shape of each part of a flat observation, in order
LAYOUTS = ("HWC", "CHW")
FIELDS = {"state": ("from",), "image": ("camera", "layout", "resize")}


@dataclass(frozen=True)
class Piece:
    """Columns of a flat observation that go into one input, and the image that they are, if any.

    Attributes:
        start, stop: columns.
        shape: sizes of the image as it is laid out; empty for plain numbers.
        layout: HWC or CHW.
        resize: height and width that the policy sees; None as shown.
    """

    start: int
    stop: int
    shape: Shape = ()
    layout: str = "HWC"
    resize: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """Numbers that come out."""
        if self.resize is None:
            return self.stop - self.start
        return self.resize[0] * self.resize[1] * (self.shape[2] if self.layout == "HWC" else self.shape[0])

    def __call__(self, flat: Tensor) -> Tensor:
        """The piece of flat observations (..., O), images flat in HWC."""
        values = flat[..., self.start : self.stop]
        if not self.shape or (self.layout == "HWC" and self.resize is None):
            return values
        image = values.reshape(-1, *self.shape)
        image = image.permute(0, 3, 1, 2) if self.layout == "HWC" else image
        if self.resize is not None and tuple(image.shape[2:]) != self.resize:
            image = F.interpolate(image, self.resize, mode="bilinear", antialias=True, align_corners=False)
        return image.permute(0, 2, 3, 1).reshape(*flat.shape[:-1], -1)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        if not self.shape:
            return {"start": self.start, "stop": self.stop}
        resize = None if self.resize is None else list(self.resize)
        return {
            "start": self.start,
            "stop": self.stop,
            "shape": list(self.shape),
            "layout": self.layout,
            "resize": resize,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Piece":
        """The inverse of ``to_json``."""
        resize = value.get("resize")
        return cls(
            int(value["start"]),
            int(value["stop"]),
            tuple(int(n) for n in value.get("shape", ())),
            str(value.get("layout", "HWC")),
            None if resize is None else (int(resize[0]), int(resize[1])),
        )


def see(pieces: Sequence[Piece], flat: Tensor) -> Tensor:
    """What a policy sees (..., O_i) of flat observations (..., O)."""
    return torch.cat([piece(flat) for piece in pieces], dim=-1)


class Wiring:
    """Finds out what each input of one policy is made of, and collects what is wrong with it.

    Args:
        inputs: names and shapes of the policy's inputs, in its own order; images are (H, W, C).
        shown: names and shapes of what the environment shows, in its flat order.
        label: what the messages begin with: the file's name, or the policy's.

    Attributes:
        mistakes: one line each.
    """

    def __init__(self, inputs: Parts, shown: Parts, label: str) -> None:
        self.inputs, self.label, self.mistakes = inputs, label, list[str]()
        self.starts: dict[str, int] = {}
        self.shown = dict(shown)
        column = 0
        for name, shape in shown:
            self.starts[name] = column
            column += size(shape)

    def by_name(self) -> list[Piece]:
        """Every input is the part of its name."""
        pieces = []
        for name, shape in self.inputs:
            found = self._columns(
                name, f"input {name!r}", "give --wiring a file that says what it is made of"
            )
            if found is None:
                continue
            start, stop, own = found
            if stop - start != size(shape) or (len(shape) == 3 and own != shape):
                self._wrong(
                    name, f"takes {sizes(shape)}, the environment shows {sizes(own)}: wire it by a file"
                )
            pieces.append(Piece(start, stop, own if len(shape) == 3 else ()))
        return pieces

    def by_file(self, content: Mapping[str, Any]) -> list[Piece]:
        """As a wiring file says."""
        if strange := sorted(set(content) - {"inputs", "task"}):
            self.mistakes.append(
                f"{self.label}: unknown key {strange[0]!r}; a wiring has 'inputs' and 'task'"
            )
        if "task" in content:
            self.mistakes.append(f"{self.label}: 'task' is a text, and this policy reads none: remove it")
        tables = content.get("inputs")
        if not isinstance(tables, dict):
            self.mistakes.append(f'{self.label}: no [inputs."NAME"]; {self._wanted()}')
            return []
        names = [name for name, _ in self.inputs]
        for name in tables:
            if name not in names:
                self._wrong(name, f"is none of this policy's{near(name, names)}")
        pieces = []
        for name, shape in self.inputs:
            table = tables.get(name)
            if not isinstance(table, dict):
                self.mistakes.append(f'{self.label}: input {name!r} is not wired; add [inputs."{name}"]')
                continue
            pieces += self._image(name, shape, table) if len(shape) == 3 else self._state(name, shape, table)
        return pieces

    def _wanted(self) -> str:
        return "the policy takes " + ", ".join(f"{name!r} {sizes(shape)}" for name, shape in self.inputs)

    def _wrong(self, name: str, what: str) -> None:
        self.mistakes.append(f"{self.label}: input {name!r} {what}")

    def _fields(self, name: str, table: Mapping[str, Any], kind: str) -> bool:
        for field in table:
            if field not in FIELDS[kind]:
                self._wrong(
                    name, f"is {kind_of(kind)}: {field!r} is none of {', '.join(FIELDS[kind])}; remove it"
                )
        if FIELDS[kind][0] not in table:
            self._wrong(name, f"needs {FIELDS[kind][0]!r}: {kind_of(kind)} of the environment")
        return FIELDS[kind][0] in table

    def _state(self, name: str, shape: Shape, table: Mapping[str, Any]) -> list[Piece]:
        if not self._fields(name, table, "state"):
            return []
        given = table["from"]
        keys = [given] if isinstance(given, str) else given
        if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
            self._wrong(name, f"needs a list of parts in 'from', got {given!r}")
            return []
        found = [self._columns(key, f"input {name!r}: 'from'", "") for key in keys]
        known = [f for f in found if f is not None]
        if len(known) < len(found):
            return []
        if images := [key for key, f in zip(keys, known, strict=True) if len(f[2]) == 3]:
            self._wrong(name, f"is numbers, {images[0]!r} is an image: wire it to an image input")
        taken = [column for start, stop, _ in known for column in range(start, stop)]
        if len(set(taken)) < len(taken):
            self._wrong(name, f"takes a column twice: {', '.join(keys)}; give each part once")
        if len(taken) != size(shape):
            have = " + ".join(
                f"{key} ({stop - start})" for key, (start, stop, _) in zip(keys, known, strict=True)
            )
            self._wrong(name, f"takes {size(shape)} numbers, but {have} are {len(taken)}; mend 'from'")
        return [Piece(start, stop) for start, stop, _ in known]

    def _image(self, name: str, shape: Shape, table: Mapping[str, Any]) -> list[Piece]:
        if not self._fields(name, table, "image"):
            return []
        camera, layout = table["camera"], table.get("layout", "HWC")
        found = self._columns(str(camera), f"input {name!r}: 'camera'", "")
        if found is None:
            return []
        start, stop, own = found
        if len(own) != 3:
            self._wrong(name, f"is an image, {camera!r} is {sizes(own)}: name a part with three sizes")
            return []
        if layout not in LAYOUTS:
            self._wrong(name, f"has layout {layout!r}; write HWC or CHW, as the environment lays it out")
            return []
        height, width, channels = own if layout == "HWC" else (own[1], own[2], own[0])
        if channels != shape[2]:
            other = LAYOUTS[1 - LAYOUTS.index(layout)]
            self._wrong(
                name,
                f"takes {shape[2]} channels, {camera!r} has {channels} in layout {layout}: is it {other}?",
            )
            return []
        resize = self._resize(name, shape, table.get("resize"), (height, width), str(camera))
        return [Piece(start, stop, own, layout, resize)]

    def _resize(
        self, name: str, shape: Shape, given: Any, shown: tuple[int, int], camera: str
    ) -> tuple[int, int] | None:
        wanted = (shape[0], shape[1])
        if given is None:
            if shown != wanted:
                self._wrong(
                    name,
                    f"takes {sizes(wanted)}, {camera!r} shows {sizes(shown)}: "
                    f"add resize = [{wanted[0]}, {wanted[1]}], or render at that size",
                )
            return None
        if given != list(wanted):
            self._wrong(
                name, f"takes {sizes(wanted)}, but resize is {given!r}: write [{wanted[0]}, {wanted[1]}]"
            )
        return wanted

    def _columns(self, name: str, where: str, remedy: str) -> tuple[int, int, Shape] | None:
        """Columns and shape of a part of the environment, or of some of its columns."""
        if name in self.shown:
            return self.starts[name], self.starts[name] + size(self.shown[name]), self.shown[name]
        key, columns = key_columns(name)
        if key not in self.shown:
            hint = near(key, list(self.shown)) + (f"; {remedy}" if remedy else "")
            self.mistakes.append(
                f"{self.label}: {where} names {key!r}, which the environment does not show{hint}"
            )
            return None
        start, total = self.starts[key], size(self.shown[key])
        first, last = int(columns.start), int(columns.stop)
        if not first < last <= total:
            self.mistakes.append(
                f"{self.label}: {where} names {name!r}, but {key!r} has {total} columns: take some of 0:{total}"
            )
            return None
        return start + first, start + last, (last - first,)


def read_wiring(file: Path) -> dict[str, Any]:
    """A wiring file.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it is no TOML.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such wiring file: {file.absolute()}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def size(shape: Shape) -> int:
    """Numbers in a part of that shape."""
    total = 1
    for n in shape:
        total *= n
    return total


def sizes(shape: Sequence[int]) -> str:
    """A shape for people."""
    return f"{shape[0]} numbers" if len(shape) == 1 else " x ".join(map(str, shape))


def kind_of(kind: str) -> str:
    """Of an input, with its article."""
    return "an image" if kind == "image" else "plain numbers"


def near(name: str, known: Sequence[str]) -> str:
    """The hint after a name that is not known."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
