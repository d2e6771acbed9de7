"""Inputs are wired by name, and every mistake is one line that says where, what and how to mend it."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.policies.wiring import Piece, Wiring, read_wiring, see

SHOWN = [("agent", (2,)), ("pixels", (4, 6, 3)), ("block", (3,))]
INPUTS = [("state", (4,)), ("camera", (2, 3, 3))]
GOOD = """
[inputs.state]
from = ["block[1:3]", "agent"]
[inputs.camera]
camera = "pixels"
resize = [2, 3]
"""


def wired(tmp_path, text, inputs=INPUTS, shown=SHOWN):
    (tmp_path / "a.toml").write_text(text)
    wiring = Wiring(inputs, shown, "a.toml")
    return wiring.by_file(read_wiring(tmp_path / "a.toml")), wiring.mistakes


def flat(rows=2):
    return torch.arange(rows * 77, dtype=torch.float32).reshape(rows, 77)


def test_state_is_taken_in_the_order_that_the_file_gives_and_images_are_averaged_down(tmp_path):
    pieces, mistakes = wired(tmp_path, GOOD)
    assert mistakes == []
    out = see(pieces, flat())
    assert out.shape == (2, 4 + 18)
    assert out[0, :4].tolist() == [75, 76, 0, 1]  # block begins in column 2 + 72
    small = out[:, 4:].reshape(2, 2, 3, 3)
    image = flat()[:, 2:74].reshape(2, 4, 6, 3)
    torch.testing.assert_close(small.mean((1, 2)), image.mean((1, 2)))  # a linear ramp keeps its mean
    assert (small[:, 1] > small[:, 0]).all()


def test_the_order_of_the_files_tables_means_nothing(tmp_path):
    swapped = "[inputs.camera]\nresize = [2, 3]\ncamera = 'pixels'\n[inputs.state]\nfrom = ['block[1:3]', 'agent']\n"
    assert wired(tmp_path, swapped)[0] == wired(tmp_path, GOOD)[0]


def test_an_image_of_channels_first_comes_out_as_channels_last(tmp_path):
    text = "[inputs.c]\ncamera = 'p'\nlayout = 'CHW'\n"
    pieces, mistakes = wired(tmp_path, text, [("c", (2, 4, 3))], [("p", (3, 2, 4))])
    assert mistakes == []
    image = torch.arange(24.0)
    assert torch.equal(see(pieces, image[None])[0].reshape(2, 4, 3), image.reshape(3, 2, 4).permute(1, 2, 0))
    assert [Piece.from_json(p.to_json()) for p in pieces] == pieces
    assert pieces[0].width == 24


def test_the_width_is_that_of_what_comes_out(tmp_path):
    for piece in wired(tmp_path, GOOD)[0]:
        assert piece.width == piece(flat()).shape[1]
        assert Piece.from_json(piece.to_json()) == piece


def test_by_name_needs_name_and_shape():
    fits = Wiring([("block", (3,)), ("agent[1:2]", (1,))], SHOWN, "run")
    assert [(p.start, p.stop) for p in fits.by_name()] == [(74, 77), (1, 2)]
    assert fits.mistakes == []
    for inputs, message in (
        (
            [("blok", (3,))],
            "run: input 'blok' names 'blok', which the environment does not show; did you mean 'block'",
        ),
        ([("block", (2,))], "run: input 'block' takes 2 numbers, the environment shows 3 numbers"),
        ([("pixels", (6, 4, 3))], "takes 6 x 4 x 3, the environment shows 4 x 6 x 3"),
        ([("block[2:4]", (2,))], "'block' has 3 columns: take some of 0:3"),
    ):
        wiring = Wiring(inputs, SHOWN, "run")
        wiring.by_name()
        assert len(wiring.mistakes) == 1
        assert message in wiring.mistakes[0]


MISTAKES = [
    ("state", "stat", "a.toml: input 'stat' is none of this policy's; did you mean 'state'?"),
    ("[inputs.camera]", "[inputs.cam]", "input 'camera' is not wired; add [inputs.\"camera\"]"),
    ('"agent"', '"agnt"', "'from' names 'agnt', which the environment does not show; did you mean 'agent'?"),
    ("block[1:3]", "block[1:4]", "'block' has 3 columns"),
    ("block[1:3]", "block", "takes 4 numbers, but block (3) + agent (2) are 5; mend 'from'"),
    ("block[1:3]", "agent", "takes a column twice: agent, agent"),
    ('"agent"', '"pixels"', "'pixels' is an image: wire it to an image input"),
    ('"pixels"', '"block"', "is an image, 'block' is 3 numbers: name a part with three sizes"),
    ('"pixels"', '"pixls"', "'camera' names 'pixls'"),
    ("resize = [2, 3]", "", "takes 2 x 3, 'pixels' shows 4 x 6: add resize = [2, 3]"),
    ("[2, 3]", "[3, 2]", "takes 2 x 3, but resize is [3, 2]: write [2, 3]"),
    ("resize", 'layout = "CHW"\nresize', "takes 3 channels, 'pixels' has 4 in layout CHW: is it HWC?"),
    ("resize", 'layout = "WHC"\nresize', "has layout 'WHC'; write HWC or CHW"),
    ("resize", "size", "'size' is none of camera, layout, resize; remove it"),
    ("camera =", "from =", "needs 'camera'"),
    ("from = ", "camera = ", "needs 'from'"),
    ('["block[1:3]", "agent"]', "3", "needs a list of parts in 'from', got 3"),
    ("\n[inputs.state]", "task = 'push'\n[inputs.state]", "'task' is a text, and this policy reads none"),
    ("\n[inputs.state]", "inputz = 1\n[inputs.state]", "unknown key 'inputz'"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_each_mistake_is_a_line_that_names_file_key_and_remedy(tmp_path, old, new, message):
    assert old in GOOD
    mistakes = wired(tmp_path, GOOD.replace(old, new, 1))[1]
    assert [m for m in mistakes if message in m], mistakes
    assert all(m.startswith("a.toml: ") and "\n" not in m for m in mistakes)


def test_no_inputs_at_all_lists_what_the_policy_takes(tmp_path):
    assert "the policy takes 'state' 4 numbers, 'camera' 2 x 3 x 3" in wired(tmp_path, "")[1][0]


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such wiring file"):
        read_wiring(tmp_path / "b.toml")
    (tmp_path / "b.toml").write_text("[inputs")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_wiring(tmp_path / "b.toml")
