"""Samples of language models in a report."""

from types import SimpleNamespace

import pytest

from offrl.errors import CheckpointError
from offrl.evaluation.completions import LONGEST, completions_section, read_samples

HEAD = "step,prompt,response,reward\n"


def tasks(directory):
    run = SimpleNamespace(directory=directory, seed=3)
    return [SimpleNamespace(groups=[SimpleNamespace(label="grpo <lora>", runs=(run,))])]


def test_first_and_last_samples_are_shown_and_nothing_is_markup(tmp_path):
    lines = ['1,"2+2?\n",<script>alert(1)</script>,0.0', "5,middle,m,0.5", '9,"a, ""b""",it is 4,1.0']
    (tmp_path / "samples.csv").write_text(HEAD + "\n".join(lines) + "\n")
    page = completions_section(tasks(tmp_path))
    assert "grpo &lt;lora&gt;, seed 3" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert "it is 4" in page
    assert "a, &quot;b&quot;" in page
    assert "middle" not in page


def test_long_texts_are_cut_and_lines_kept(tmp_path):
    (tmp_path / "samples.csv").write_text(HEAD + f'1,"one\ntwo",{"x" * (LONGEST + 50)},1.0\n')
    page = completions_section(tasks(tmp_path))
    assert "one<br>two" in page
    assert "x" * LONGEST + " ..." in page
    assert "x" * (LONGEST + 1) not in page


def test_other_runs_have_no_such_section(tmp_path):
    assert completions_section(tasks(tmp_path)) == ""
    (tmp_path / "samples.csv").write_text(HEAD)
    assert completions_section(tasks(tmp_path)) == ""


@pytest.mark.parametrize(
    "content", ["step,prompt\n1,a\n", HEAD + "x,a,b,1.0\n", HEAD + "1,a\n", HEAD + "1,a,b,c\n"]
)
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "samples.csv").write_text(content)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_samples(tmp_path)
    assert "\n" not in str(caught.value)
