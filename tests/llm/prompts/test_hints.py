"""Hints of text: a teacher behind a local server, files, leaks, and how hints enter prompts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from offrl.commands.llm import main
from offrl.errors import ConfigError, DatasetError
from offrl.llm.pretrained import Subwords
from offrl.llm.prompts import hints
from offrl.llm.prompts.hints import TIERS, TextHints, leaks, load_hints, parts_of, with_hint
from offrl.llm.rewards import load_rewards
from offrl.llm.tasks.prompts import PromptTask

ROWS = [
    {"prompt": "What is 3 + 4?", "answer": "7"},
    {"prompt": "Name the capital of France.", "answer": "Paris"},
]


NO_HTTP = b"220 a mail server\r\n"


class Server(HTTPServer):
    """Replies from a list, then the last one again; keeps what it was asked."""

    def __init__(self, replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked, self.keys = list(replies), [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        server.keys.append(self.headers.get("Authorization"))
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if reply is None:
            self.send_error(500, explain="no such model")
            return
        data = reply if isinstance(reply, bytes) else json.dumps(chat(reply)).encode()
        if data == NO_HTTP:
            self.wfile.write(data)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def chat(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def serve():
    running = []

    def start(*replies):
        server = Server(replies)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def made(*command):
    return main(["hints", "make", *map(str, command)])


GOOD = '["add the ones", "look at both"]'


def test_the_command_asks_once_for_each_prompt_and_tier(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server, out = serve(f"Sure:\n```json\n{GOOD}\n```"), tmp_path / "h.jsonl"
    command = ("--prompts", rows_file(tmp_path), "--teacher", server.url, "--out", out, "--parts", "2")
    assert made(*command, "--tiers", "knowledge,solution", "--model", "m") == 0
    assert "4 asked: 4 kept, 0 showed the answer, 0 of another form" in capsys.readouterr().out
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], server.keys[0]) == ("m", 1024, "Bearer secret")
    assert ROWS[0]["prompt"] in body["messages"][0]["content"]
    found = load_hints(str(out))
    assert found[ROWS[1]["prompt"]][TIERS["solution"]] == ["add the ones", "look at both"]
    assert TIERS["planning"] not in found[ROWS[1]["prompt"]]
    assert made(*command, "--tiers", "knowledge,planning,solution") == 0
    assert len(server.asked) == 6  # planning alone was missing


def test_a_missing_column_is_one_of_the_prompts(tmp_path):
    files = ("--prompts", rows_file(tmp_path), "--out", tmp_path / "h.jsonl")
    with pytest.raises(DatasetError, match=r"rows\.jsonl has no 'question'"):
        made(*files, "--teacher", "http://127.0.0.1:9/v1", "--prompt-key", "question")


def test_a_run_that_was_cut_goes_on_where_it_was(serve, tmp_path):
    server, out = serve(GOOD, GOOD, None), tmp_path / "h.jsonl"
    teacher = hints.Teacher(server.url, "m")
    how = {"tiers": ["knowledge", "planning"], "parts": 2}
    with pytest.raises(ConfigError, match="gave no answer: HTTP Error 500"):
        hints.make_hints(ROWS, out, teacher, **how)
    assert list(load_hints(str(out))) == [ROWS[0]["prompt"]]
    server.replies = [GOOD]
    made_ = hints.make_hints(ROWS, out, teacher, **how)
    assert (made_.asked, made_.kept) == (2, 2)
    assert len(load_hints(str(out))) == 2


def test_line_separators_within_text_end_no_line(tmp_path):
    """JSON writes U+2028 and U+0085 as they are."""
    out, asked = tmp_path / "h.jsonl", "two\u2028lines\x85more"
    teacher = lambda text: '["a\u2028b", "c"]'  # noqa: E731
    hints.make_hints([{"prompt": asked, "answer": "7"}], out, teacher, tiers=["knowledge"], parts=2)
    assert load_hints(str(out))[asked][TIERS["knowledge"]] == ["a\u2028b", "c"]
    out.write_bytes(out.read_bytes().replace(b"\n", b"\r\n"))
    assert list(load_hints(str(out))) == [asked]


def test_replies_that_show_the_answer_or_have_another_form_are_asked_for_again(serve, tmp_path):
    out = tmp_path / "h.jsonl"
    server = serve('["3 + 4 = 7", "so"]', GOOD, "no list", '["Paris!", "x"]')
    found = hints.make_hints(ROWS, out, hints.Teacher(server.url, "m"), tiers=["solution"], parts=2)
    assert (found.asked, found.kept, found.leaked, found.malformed) == (4, 1, 2, 1)
    kept = load_hints(str(out))
    assert kept[ROWS[0]["prompt"]][TIERS["solution"]] == ["add the ones", "look at both"]
    assert kept[ROWS[1]["prompt"]][TIERS["solution"]] == []
    again = hints.make_hints(ROWS, out, hints.Teacher(server.url, "m"), tiers=["solution"], parts=2)
    assert again.asked == 0


@pytest.mark.parametrize(
    ("part", "answer", "shown"),
    [
        ("that makes 12", "12", True), ("that makes 12.0", "12", True), ("1,200 in all", "#### 1200", True),
        ("there are 120", "12", False), ("0.12 of it", "12", False), ("item12", "12", True),
        ("20-12", "12", True), (".5 of it", "0.5", True), ("-12", "12", False), ("12, 30", "12", True),
        ("it is PARIS", "Paris", True), ("comparisons", "Paris", False), ("nothing", "", False),
    ],
)  # fmt: skip
def test_leaks(part, answer, shown):
    assert leaks(["first", part], answer) is shown


def test_lists_in_replies():
    assert parts_of('x ["a", " b "] y', 2) == ["a", "b"]
    for around in (
        "a note [1]: {}",
        "{} [hope it helps]",
        "<think>[maybe]</think>{}",
        '["x", "y"] better: {}',
    ):
        assert parts_of(around.format('["a", "b [c]"]'), 2) == ["a", "b [c]"]
    for reply in ('["a"]', '["a", ""]', '["a", 1]', "none", "[broken", '{"a": 1}'):
        assert parts_of(reply, 2) is None


def test_teachers_are_limited_in_size_time_and_address(serve):
    large = serve(b"x" * (hints.LARGEST + 1))
    with pytest.raises(ConfigError, match="sent more than"):
        hints.Teacher(large.url, "m")("?")
    with pytest.raises(ConfigError, match="gave no answer"):
        hints.Teacher(serve(b'{"choices": []}').url, "m")("?")
    with pytest.raises(ConfigError, match="gave no answer: HTTP Error 500: .* no such model") as caught:
        hints.Teacher(serve(None).url, "m")("?")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="gave no answer: BadStatusLine"):
        hints.Teacher(serve(NO_HTTP).url, "m")("?")
    with pytest.raises(ConfigError, match="must begin with http"):
        hints.Teacher("file:///etc", "m")("?")
    with pytest.raises(ConfigError, match="gave no answer: TimeoutError"):
        import socket

        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            hints.Teacher(f"http://127.0.0.1:{silent.getsockname()[1]}", "m", timeout=0.1)("?")


def test_files_that_hold_something_else_are_refused(tmp_path):
    path = tmp_path / "h"
    no_list = json.dumps({"prompt": "a", TIERS["planning"]: "b"})
    for text, says in (("{", "line 1"), ('{"a": 1}', "line 1"), (no_list, "list of text")):
        path.write_text(text)
        with pytest.raises(DatasetError, match=says):
            load_hints(str(path))
    with pytest.raises(DatasetError, match="cannot be read"):
        load_hints(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="unknown tier 'x'"):
        hints.make_hints([], path, str, tiers=["x"])


def test_empty_lines_are_passed_over(tmp_path):
    path = tmp_path / "h"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n\n')
    assert [*load_hints(str(path))] == ["a", "b"]


def test_the_next_command_reads_what_was_made(serve, tmp_path, capsys):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "h.jsonl"
    rows.write_text("".join(json.dumps({"q": r["prompt"], "answer": r["answer"]}) + "\n" for r in ROWS))
    command = ("--prompts", rows, "--out", out, "--prompt-key", "q", "--parts", "2", "--teacher")
    assert made(*command, serve(GOOD).url) == 0
    assert f"--dataset {rows} --prompt-key q --reward REWARD --scaffold hints" in capsys.readouterr().out


def test_a_file_without_a_hint_is_not_recommended(serve, tmp_path, capsys):
    out = tmp_path / "h.jsonl"
    with pytest.raises(ConfigError, match=r"h.jsonl holds no hint: remove it, and ask another teacher"):
        made("--prompts", rows_file(tmp_path), "--out", out, "--teacher", serve("no list").url)
    assert "next:" not in capsys.readouterr().out


def text_task(byte_tokenizer):
    words = Subwords(byte_tokenizer, [])
    return PromptTask("q", ROWS, words, load_rewards(("regex:{answer}",)), template="none")


def entry(prompt, knowledge, solution):
    return {"prompt": prompt, TIERS["knowledge"]: knowledge, TIERS["solution"]: solution}


def test_levels_are_cumulative_parts_tier_by_tier(byte_tokenizer):
    task = text_task(byte_tokenizer)
    known = {ROWS[0]["prompt"]: entry(ROWS[0]["prompt"], ["A", "B"], ["C"])}
    made_ = TextHints(task, known)
    prompts = task.chosen(torch.tensor([0, 1, 0]))
    assert made_.hint_levels == 3
    texts = []
    for level in (1, 2, 3):
        hinted, fits = made_.hinted(prompts, level)
        assert fits.tolist() == [True, False, True]
        assert torch.equal(hinted.ids, prompts.ids)
        texts.append(task.vocabulary.text(hinted.tokens[0][hinted.mask[0]]))
    assert [text.split("Hint:\n")[1] for text in texts] == ["A", "A\nB", "C"]
    assert all(text.startswith(ROWS[0]["prompt"]) for text in texts)
    assert TextHints(task, known, ("solution",)).hint_levels == 1
    with pytest.raises(ConfigError, match="no prompt of the data set has a hint"):
        TextHints(task, {})


def test_hinted_prompts_that_are_too_long_are_dropped(byte_tokenizer):
    task = text_task(byte_tokenizer)
    known = {row["prompt"]: entry(row["prompt"], ["A", "B" * 9], []) for row in ROWS}
    made_ = TextHints(task, known, longest=30)
    prompts = task.chosen(torch.tensor([0, 1]))
    assert made_.hinted(prompts, 1)[1].tolist() == [True, False]
    assert made_.hinted(prompts, 2)[1].tolist() == [False, False]


def test_a_hint_stands_under_the_last_message():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert with_hint(messages, ["a", "b"])[1] == {"role": "user", "content": "q\n\nHint:\na\nb"}
    assert messages[1]["content"] == "q"
