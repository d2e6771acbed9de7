"""Downloads against a small server on loopback that answers as real mirrors do, good and bad."""

import hashlib
import http.server
import re
import threading

import h5py
import numpy as np
import pytest

from offrl.data import download
from offrl.data.addresses import addresses, official_path
from offrl.data.download import add, data_home, fetch, installed, local_path
from offrl.data.reference import D4RL
from offrl.errors import ConfigError, DatasetError

NAME = "hopper-medium-v2"


def write_file(path, obs_dim=11, act_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(2000, obs_dim)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, size=(2000, act_dim)).astype(np.float32)
        file["rewards"] = rng.normal(size=2000).astype(np.float32)
        file["terminals"] = np.zeros(2000, bool)
        file["timeouts"] = np.arange(2000) % 1000 == 999
    return path


@pytest.fixture
def content(tmp_path):
    """The bytes of a small but real dataset file."""
    return write_file(tmp_path / "source.hdf5").read_bytes()


class Server:
    """Answers each path with its scripted answers in turn, the last one for ever.

    An answer is an integer (that status) or a function of (handler, start, header) that writes the reply.
    """

    def __init__(self):
        self.answers, self.requests = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
                answers = outer.answers.get(self.path, [404])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                answer(self, int(match[1]) if match else 0)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    monkeypatch.setenv("OFFRL_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("OFFRL_DATA_MIRROR", server.base)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "CHUNK", 8192)
    yield server
    server.close()


def serve(body, *, limit=None, tag='"v1"', ranges=True, claim=None):
    """Answer with ``body`` from the wished byte on; at most ``limit`` bytes, then the connection breaks."""

    def answer(handler, start):
        start = start if ranges and start < len(body) else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(claim if claim is not None else len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if tag:
            handler.send_header("ETag", tag)
        handler.end_headers()
        handler.wfile.write(body[start:][:limit])

    return answer


def test_a_file_is_downloaded_checked_and_found_again(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content)]
    path = fetch(NAME)
    assert path == local_path(f"d4rl:{NAME}") == data_home() / f"{NAME}.hdf5"
    assert path.read_bytes() == content
    digest = hashlib.sha256(content).hexdigest()
    assert (data_home() / f"{NAME}.hdf5.sha256").read_text() == f"{digest}  {NAME}.hdf5\n"
    assert fetch(f"d4rl:{NAME}", progress=True) == path
    assert len(server.requests) == 1  # the second call asked nobody
    assert installed() == [NAME]
    assert sorted(p.name for p in data_home().iterdir() if p.suffix != ".lock") == [
        path.name,
        path.name + ".sha256",
    ]


def test_mirrors_are_tried_in_order_and_the_official_path_after_the_plain_name(server, content, monkeypatch):
    monkeypatch.setenv("OFFRL_DATA_MIRROR", f"{server.base}/a, {server.base}/b/")
    server.answers = {
        f"/a/{NAME}.hdf5": [403],
        "/a/gym_mujoco_v2/hopper_medium-v2.hdf5": [404],
        f"/b/{NAME}.hdf5": [serve(b"<html>please log in</html>")],
        "/b/gym_mujoco_v2/hopper_medium-v2.hdf5": [serve(content)],
    }
    assert fetch(NAME).read_bytes() == content
    assert [path for path, *_ in server.requests] == list(server.answers)


def test_when_all_mirrors_fail_one_line_lists_each_with_its_reason(server, monkeypatch):
    monkeypatch.setenv("OFFRL_DATA_MIRROR", f"{server.base}/a,{server.base}/b,http://127.0.0.1:9")
    server.answers = {f"/a/{NAME}.hdf5": [403], f"/b/{NAME}.hdf5": [serve(b"<html>sorry</html>")]}
    with pytest.raises(DatasetError) as caught:
        fetch(NAME)
    line = str(caught.value)
    assert "\n" not in line
    assert f"{server.base}/a/{NAME}.hdf5 (403 Forbidden)" in line
    assert f"{server.base}/a/gym_mujoco_v2/hopper_medium-v2.hdf5 (404 Not Found)" in line
    assert f"{server.base}/b/{NAME}.hdf5 (it sent no readable HDF5 file: a web page)" in line
    assert "127.0.0.1:9" in line
    assert "refused" in line
    assert f"offrl data add FILE --as d4rl:{NAME}" in line
    assert not local_path(NAME).exists()
    assert not list(data_home().glob("*.sha256"))


def test_a_broken_transfer_goes_on_where_it_stopped(server, content):
    """Three connections: each byte is asked for once, under the validator of the first answer."""
    server.answers[f"/{NAME}.hdf5"] = [
        serve(content, limit=10_000),
        serve(content, limit=30_000),
        serve(content),
    ]
    assert fetch(NAME).read_bytes() == content
    assert [r[1:] for r in server.requests] == [
        (None, None),
        ("bytes=10000-", '"v1"'),
        ("bytes=40000-", '"v1"'),
    ]


def test_a_later_call_resumes_what_an_earlier_one_left(server, content, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.answers[f"/{NAME}.hdf5"] = [serve(content, limit=50_000), serve(content)]
    with pytest.raises(DatasetError, match=f"after 50000 of {len(content)} bytes"):
        fetch(NAME)
    assert not local_path(NAME).exists()
    monkeypatch.setenv("OFFRL_DATA_MIRROR", server.base + "/")
    assert fetch(NAME).read_bytes() == content
    assert server.requests[-1][1] == "bytes=50000-"


def test_a_part_of_one_mirror_is_not_continued_from_another(server, content, tmp_path, monkeypatch):
    """Two mirrors may hold different files of the same length: the second one starts at its first byte."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setenv("OFFRL_DATA_MIRROR", f"{server.base}/a,{server.base}/b")
    other = write_file(tmp_path / "other.hdf5", seed=1).read_bytes()
    assert len(other) == len(content)
    server.answers[f"/a/{NAME}.hdf5"] = [serve(other, limit=40_000)]
    server.answers[f"/b/{NAME}.hdf5"] = [serve(content)]
    assert fetch(NAME).read_bytes() == content
    assert server.requests[-1] == (f"/b/{NAME}.hdf5", None, None)


def test_a_file_that_changed_on_the_server_is_fetched_anew(server, content, tmp_path):
    """Without a validator the total length tells; mixing both versions would damage the file silently."""
    other = write_file(tmp_path / "other.hdf5", seed=1).read_bytes() + b"\0" * 100
    first = serve(other, limit=40_000, tag=None)
    server.answers[f"/{NAME}.hdf5"] = [first, serve(content, tag=None), serve(content, tag=None)]
    assert fetch(NAME).read_bytes() == content


def test_a_server_without_ranges_sends_the_whole_file_again(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content, limit=10_000), serve(content, ranges=False)]
    assert fetch(NAME).read_bytes() == content


def test_a_part_that_is_already_whole_is_accepted(server, content):
    """Killed between the last byte and the rename: the server answers 416 with the total length."""

    def satisfied(handler, start):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    part = local_path(NAME).with_suffix(".hdf5.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    url = f"{server.base}/{NAME}.hdf5"
    download.atomic_write_json(
        download._state_file(part), {"url": url, "validator": None, "total": len(content)}
    )
    server.answers[f"/{NAME}.hdf5"] = [satisfied]
    assert fetch(NAME).read_bytes() == content
    assert not part.exists()


def test_a_body_shorter_than_it_claims_never_becomes_a_dataset(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content[:-5000], claim=len(content))]
    with pytest.raises(
        DatasetError, match=r"the connection ended after \d+ of \d+ bytes|wrong range|changed"
    ):
        fetch(NAME)
    assert not local_path(NAME).exists()


def test_a_truncated_file_of_the_right_claimed_length_is_refused(server, content):
    """The mirror's own copy is cut short, so length and header agree: HDF5's end of file tells."""
    server.answers[f"/{NAME}.hdf5"] = [serve(content[:-5000])]
    with pytest.raises(DatasetError, match="no readable HDF5 file"):
        fetch(NAME)
    assert not list(data_home().glob("*.part"))


def test_a_wrong_range_is_refused(server, content):
    def shifted(handler, start):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start + 1}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start - 1))
        handler.end_headers()
        handler.wfile.write(content[start + 1 :])

    server.answers[f"/{NAME}.hdf5"] = [serve(content, limit=9_000), shifted]
    with pytest.raises(DatasetError, match="wrong range"):
        fetch(NAME)


def test_an_absurd_length_is_refused_before_a_byte_is_written(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content, claim=10**12)]
    with pytest.raises(DatasetError, match="1000000000000 bytes"):
        fetch(NAME)


def test_a_full_disk_is_noticed_before_the_transfer(server, content, monkeypatch):
    server.answers[f"/{NAME}.hdf5"] = [serve(content)]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"No space left on device \(\d+ bytes needed\)"):
        fetch(NAME)
    assert not local_path(NAME).exists()


def test_a_file_of_other_arrays_is_refused(server, tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["actions"] = np.zeros(3)
    server.answers[f"/{NAME}.hdf5"] = [serve((tmp_path / "x.hdf5").read_bytes())]
    with pytest.raises(DatasetError, match="lacks observations, rewards, terminals"):
        fetch(NAME)


def test_a_damaged_local_file_is_noticed(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content)]
    path = fetch(NAME)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DatasetError, match="does not match its recorded checksum") as caught:
        fetch(NAME)
    assert "delete it and download again" in str(caught.value)


def test_a_second_download_must_match_the_first(server, content, tmp_path):
    server.answers[f"/{NAME}.hdf5"] = [serve(content)]
    fetch(NAME).unlink()
    server.answers[f"/{NAME}.hdf5"] = [
        serve(write_file(tmp_path / "b.hdf5", seed=5).read_bytes(), tag='"v2"')
    ]
    with pytest.raises(DatasetError, match="does not match its recorded checksum"):
        fetch(NAME)
    assert not local_path(NAME).exists()


def test_parallel_calls_download_once(server, content):
    server.answers[f"/{NAME}.hdf5"] = [serve(content)]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [local_path(NAME)] * 4
    assert len(server.requests) == 1


def test_names_that_are_not_d4rls_are_refused(server):
    for name in (
        "hoper-medium-v2",
        "../../etc/passwd",
        "minari:D4RL/door/human-v2",
        "",
        "hopper-medium-v2/../x",
    ):
        with pytest.raises(DatasetError, match="unknown dataset"):
            fetch(name)
    assert server.requests == []
    assert not data_home().exists()


@pytest.mark.parametrize("mirror", ["ftp://host/x", "/data/d4rl", "file:///data", "http://", "host:80"])
def test_only_http_mirrors_are_accepted(monkeypatch, mirror):
    monkeypatch.setenv("OFFRL_DATA_MIRROR", f"http://good.example, {mirror}")
    with pytest.raises(ConfigError, match="OFFRL_DATA_MIRROR must hold http"):
        addresses(NAME)


def test_public_addresses_without_a_mirror(monkeypatch):
    monkeypatch.delenv("OFFRL_DATA_MIRROR", raising=False)
    first, second = addresses(f"d4rl:{NAME}")
    assert first.endswith("/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5")
    assert second.endswith("/D4RL/resolve/main/hopper_medium-v2.hdf5")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        ("hopper-medium-replay-v0", "gym_mujoco/hopper_mixed.hdf5"),
        ("ant-medium-expert-v0", "gym_mujoco/ant_medium_expert.hdf5"),
        ("halfcheetah-full-replay-v1", "gym_mujoco_v1/halfcheetah_full_replay-v1.hdf5"),
        (
            "antmaze-umaze-v0",
            "ant_maze_new/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5",
        ),
        (
            "antmaze-medium-play-v1",
            "ant_maze_v1/Ant_maze_medium_noisy_multistart_True_multigoal_False_sparse.hdf5",
        ),
        (
            "antmaze-large-diverse-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        ),
        (
            "antmaze-eval-large-play-v0",
            "ant_maze_new/Ant_maze_large_eval_noisy_multistart_True_multigoal_True_sparse.hdf5",
        ),
        ("maze2d-open-v0", "maze2d/maze2d-open-sparse.hdf5"),
        ("maze2d-umaze-dense-v1", "maze2d/maze2d-umaze-dense-v1.hdf5"),
        ("maze2d-eval-large-v1", "maze2d/maze2d-eval-large-sparse-v1.hdf5"),
        ("pen-cloned-v0", "hand_dapg/pen-demos-v0-bc-combined.hdf5"),
        ("relocate-human-v0", "hand_dapg/relocate-v0_demos_clipped.hdf5"),
        ("door-expert-v1", "hand_dapg_v1/door-expert-v1.hdf5"),
        ("kitchen-partial-v0", "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5"),
    ],
)
def test_official_paths(name, path):
    """Facts of D4RL's registrations, the irregular ones included."""
    assert official_path(name) == path


def test_every_name_has_its_own_official_path():
    assert len({official_path(name) for name in D4RL}) == len(D4RL)


def test_a_file_is_added_under_a_name(server, content, tmp_path):
    path = add(tmp_path / "source.hdf5", f"d4rl:{NAME}")
    assert path.read_bytes() == content
    assert fetch(NAME) == path
    assert add(tmp_path / "source.hdf5", NAME) == path  # again: nothing to do
    assert server.requests == []


def test_what_is_added_must_be_whole_fit_the_name_and_not_replace_other_data(server, content, tmp_path):
    with pytest.raises(DatasetError, match="observations of width 11, walker2d-medium-v2 has 17"):
        add(tmp_path / "source.hdf5", "walker2d-medium-v2")
    with pytest.raises(DatasetError, match="actions of width 2, hopper-medium-v2 has 3"):
        add(write_file(tmp_path / "two.hdf5", act_dim=2), NAME)
    with pytest.raises(FileNotFoundError, match=r"missing\.hdf5"):
        add(tmp_path / "missing.hdf5", NAME)
    (tmp_path / "cut.hdf5").write_bytes(content[:-3000])
    with pytest.raises(DatasetError, match="not a readable HDF5 file"):
        add(tmp_path / "cut.hdf5", NAME)
    assert not local_path(NAME).exists()
    add(tmp_path / "source.hdf5", NAME)
    with pytest.raises(DatasetError, match="exists and holds other data; delete it first"):
        add(write_file(tmp_path / "b.hdf5", seed=3), NAME)
    assert local_path(NAME).read_bytes() == content
    with pytest.raises(DatasetError, match="did you mean"):
        add(tmp_path / "source.hdf5", "d4rl:hopper-medum-v2")


def test_ogbench_files_come_from_the_same_mirrors_under_their_own_paths(server, tmp_path):
    """The shared file of all tasks and the held-out one; resumed, checked and recorded like D4RL's."""
    arrays = {"observations": np.zeros((900, 29)), "actions": np.zeros((900, 8)), "terminals": np.ones(900)}
    np.savez(tmp_path / "x.npz", **arrays)
    body = (tmp_path / "x.npz").read_bytes()
    name = "ogbench:antmaze-large-navigate-singletask-task2-v0"
    server.answers = {
        "/antmaze-large-navigate-v0.npz": [404],
        "/ogbench/antmaze-large-navigate-v0.npz": [serve(body, limit=100_000), serve(body)],
        "/antmaze-large-navigate-v0-val.npz": [serve(body)],
    }
    path = fetch(name)
    assert path == local_path(name) == data_home() / "antmaze-large-navigate-v0.npz"
    assert path.read_bytes() == body
    assert server.requests[-1] == ("/ogbench/antmaze-large-navigate-v0.npz", "bytes=100000-", '"v1"')
    assert (data_home() / "antmaze-large-navigate-v0.npz.sha256").is_file()
    assert fetch(f"{name}-val") == data_home() / "antmaze-large-navigate-v0-val.npz"
    path.write_bytes(body[:-1])
    with pytest.raises(DatasetError, match="does not match its recorded checksum"):
        fetch(name)


@pytest.mark.parametrize("body", [b"<html>no</html>", b"PK but no zip"])
def test_what_is_no_npz_file_is_not_kept(server, body):
    name = "ogbench:scene-play-singletask-v0-val"
    server.answers = {"/scene-play-v0-val.npz": [serve(body)]}
    with pytest.raises(
        DatasetError, match=r"it sent no readable \.npz file.*--as ogbench:scene-play-singletask-v0-val"
    ):
        fetch(name)
    assert not local_path(name).exists()


def test_an_npz_file_of_another_layout_is_not_kept(server, tmp_path):
    np.savez(tmp_path / "x.npz", observations=np.zeros(3))
    server.answers = {"/scene-play-v0.npz": [serve((tmp_path / "x.npz").read_bytes())]}
    with pytest.raises(DatasetError, match="its file lacks actions, terminals"):
        fetch("ogbench:scene-play-singletask-v0")


def test_ogbenchs_public_address(monkeypatch):
    monkeypatch.delenv("OFFRL_DATA_MIRROR", raising=False)
    (address,) = addresses("ogbench:cube-double-play-singletask-task4-v0-val")
    assert address.endswith("/datasets/ogbench/cube-double-play-v0-val.npz")
