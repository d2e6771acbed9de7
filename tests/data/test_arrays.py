"""NumPy archives and tables: what is read, in which order, and how bad cells are named."""

import io
import pickle
import zipfile

import numpy as np
import polars
import pytest

from offrl.data.arrays import read_npz, read_table
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError, MissingExtraError


def content():
    return {
        "observations": np.arange(12.0).reshape(6, 2),
        "actions": np.full((6, 1), 0.5),
        "rewards": np.arange(6.0),
        "terminated": np.arange(6) == 2,
        "truncated": np.arange(6) == 5,
    }


# --- npz ---------------------------------------------------------------------------------------------------


def test_npz_round_trip(tmp_path):
    fields = content() | {"next_observations": np.ones((6, 2)), "infos.t": np.arange(6)}
    np.savez_compressed(tmp_path / "x.npz", **fields)
    data = read_npz(tmp_path / "x.npz", {"seed": 1})
    assert data.sha256 == OfflineDataset.from_fields(fields).sha256
    assert data.fields["infos.t"].tolist() == list(range(6))
    assert data.metadata == {"seed": 1}
    np.savez(tmp_path / "y.npz", **data.fields)
    assert read_npz(tmp_path / "y.npz").sha256 == data.sha256


def test_npz_takes_d4rl_names_and_keys(tmp_path):
    fields = content()
    fields["terminals"], fields["timeouts"] = fields.pop("terminated"), fields.pop("truncated")
    fields["observations.a"] = fields.pop("observations")
    np.savez(tmp_path / "x.npz", **fields)
    assert read_npz(tmp_path / "x.npz").episode_lengths.tolist() == [3, 3]
    del fields["timeouts"]
    np.savez(tmp_path / "x.npz", **fields)
    assert read_npz(tmp_path / "x.npz", {"max_episode_steps": 2}).episode_lengths.tolist() == [2, 1, 2, 1]


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_npz_runs_no_code(tmp_path):
    np.savez(tmp_path / "x.npz", **content() | {"rewards": np.array([Hostile()] * 6, dtype=object)})
    with pytest.raises(DatasetError, match="not a readable"):
        read_npz(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DatasetError, match="not a readable"):
        read_npz(tmp_path / "y.npz")


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **content())
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(DatasetError, match="not a readable"):
            read_npz(path)
    generator = np.random.default_rng(0)
    want = OfflineDataset.from_fields(content()).sha256
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_npz(path).sha256 == want
        except DatasetError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "lacks actions; it holds observations, rewards, terminated, truncated"),
        ({"observations": None}, "lacks observations"),
        ({"rewards": np.zeros(5)}, "'rewards' has 5 rows"),
        ({"actions": np.zeros((6, 1), int)}, "'actions' are integers"),
        ({"values": np.zeros(6)}, "unknown array 'values'"),
        ({"terminals": np.zeros(6)}, "holds both 'terminals' and 'terminated'; keep one of them"),
    ],
)
def test_bad_npz_arrays_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "x.npz", **{k: v for k, v in (content() | changes).items() if v is not None})
    with pytest.raises(DatasetError, match=message):
        read_npz(tmp_path / "x.npz")


def test_npz_that_claims_much_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("rewards.npy", header.getvalue())
    with pytest.raises(DatasetError, match=r"'rewards\.npy' claims 4000000000000 bytes, but holds"):
        read_npz(tmp_path / "x.npz")


# --- tables ------------------------------------------------------------------------------------------------

LOG = """step,ep,x1,x10,x2,u1,r,done,note
0,a,0.5,10,2,-1,1,false,hi
1,a,1.5,11,3,0,2,True,
0,b,2.5,12,4,1,3,0,"a, b"
"""
COLUMNS = {"observations": "x*", "actions": "u*", "reward": "r", "episode": "ep", "terminated": "done"}


def table(tmp_path, text=LOG, **options):
    path = tmp_path / "log.csv"
    path.write_text(text)
    return read_table(path, **COLUMNS | options)


def test_csv(tmp_path):
    """x2 comes before x10; episode b does not terminate, so it is cut."""
    data = table(tmp_path, metadata={"seed": 1})
    assert data.fields["observations"].tolist() == [[0.5, 2, 10], [1.5, 3, 11], [2.5, 4, 12]]
    assert data.fields["actions"].tolist() == [[-1], [0], [1]]
    assert data.fields["rewards"].tolist() == [1, 2, 3]
    assert data.episode_starts.tolist() == [0, 2, 3]
    assert data.fields["terminated"].tolist() == [False, True, False]
    assert data.fields["truncated"].tolist() == [False, False, True]
    assert data.metadata == {"seed": 1}


def test_patterns_can_be_listed_and_columns_left_out(tmp_path):
    data = table(tmp_path, observations=["x10", "x1"], next_observations=["x2", "step"], terminated=None)
    assert data.fields["observations"].tolist() == [[10, 0.5], [11, 1.5], [12, 2.5]]
    assert data.fields["next_observations"].tolist() == [[2, 0], [3, 1], [4, 0]]
    assert data.fields["truncated"].tolist() == [False, True, True]


def test_a_truncated_column_is_believed(tmp_path):
    data = table(tmp_path, LOG.replace("0,b", "1,b"), truncated="step", observations=["x1"], terminated=None)
    assert data.fields["truncated"].tolist() == [False, True, True]
    with pytest.raises(DatasetError, match="episode 0 ends at row 1 neither terminated nor truncated"):
        table(tmp_path, LOG.replace("1,a", "0,a"), truncated="step", terminated=None)


def test_parquet_equals_csv(tmp_path):
    frame = polars.read_csv(io.StringIO(LOG.replace("True", "1").replace("false", "0")))
    frame.with_columns(polars.col("u1").cast(polars.Float32)).write_parquet(tmp_path / "log.parquet")
    assert read_table(tmp_path / "log.parquet", **COLUMNS).sha256 == table(tmp_path).sha256
    frame.with_columns(polars.col("u1").cast(polars.Decimal(9, 3))).write_parquet(tmp_path / "log.parquet")
    assert read_table(tmp_path / "log.parquet", **COLUMNS).sha256 == table(tmp_path).sha256
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DatasetError, match="'actions' are integers"):  # a typed file can say that they are
        read_table(tmp_path / "log.parquet", **COLUMNS)
    frame.with_columns(polars.col("u1").cast(polars.String)).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DatasetError, match="column 'u1' holds values of type String, which are no numbers"):
        read_table(tmp_path / "log.parquet", **COLUMNS)
    frame.with_columns(polars.col("r").cast(polars.Int128), polars.col("u1").cast(float)).write_parquet(
        tmp_path / "log.parquet"
    )
    assert read_table(tmp_path / "log.parquet", **COLUMNS).sha256 == table(tmp_path).sha256


def test_parquet_that_claims_many_rows_is_refused(tmp_path):
    polars.DataFrame({"r": np.zeros(2_000_000)}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DatasetError, match=r"log\.parquet claims 2000000 rows, but takes \d+ bytes"):
        read_table(tmp_path / "log.parquet", **COLUMNS)


@pytest.mark.parametrize("column", ["ep", "done"])
@pytest.mark.parametrize("values", [[[0], [1], [0]], [b"\xff"] * 3, [{"a": 0}] * 3])
def test_parquet_columns_that_are_no_numbers_or_text_are_refused(tmp_path, column, values):
    frame = polars.read_csv(io.StringIO(LOG)).with_columns(polars.Series(column, values))
    frame.with_columns(polars.col("u1").cast(float)).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DatasetError, match=f"column '{column}' holds values of type .* a number or text is"):
        read_table(tmp_path / "log.parquet", **COLUMNS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.5", "oops", r"column 'x1', row 1 \(line 3\) holds 'oops', which is no number"),
        ("1.5", "", r"column 'x1', row 1 \(line 3\) holds nothing"),
        ("1.5", "nan", "'observations' is not finite .* at row 1"),
        ("12,", "-inf,", "'observations' is not finite .* at row 2"),
        ("True", "maybe", r"column 'done', row 1 \(line 3\) holds 'maybe'; it needs 0/1 or true/false"),
        ("false", "true", "'terminated' is set at row 0, inside episode 0"),
        ("0,b,2.5", "0,b,2.5,7", "cannot be read as a table: found more fields"),
        ('3,0,"a, b"', "3", r"column 'done', row 2 \(line 4\) holds nothing"),
        ("hi\n1,a,1.5", '"two\nlines"\n1,a,oops', "column 'x1', row 1 holds 'oops'"),  # which is in line 4
        ("x1,x10", "x1,x1", "has several columns named 'x1'; rename them"),
    ],
)
def test_bad_cells_are_named(tmp_path, old, new, message):
    with pytest.raises(DatasetError, match=message) as caught:
        table(tmp_path, LOG.replace(old, new, 1))
    assert "log.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_separators_are_told(tmp_path):
    with pytest.raises(DatasetError, match="only tables with commas between their columns are read"):
        table(tmp_path, LOG.replace(", ", " ").replace(",", ";"))


def test_rows_of_an_episode_must_be_together(tmp_path):
    with pytest.raises(DatasetError, match=r"episode 'a' begins again at row 3; .* sort the table"):
        table(tmp_path, LOG + "2,a,1,1,1,1,1,0,\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": "v*"}, r"has no column 'v\*'; it has step, ep, x1, .*'offrl data convert'"),
        ({"reward": "R"}, "has no column 'R'"),
        ({"reward": "x1"}, "column 'x1' is asked for twice"),
        ({"next_observations": "step"}, r"'next_observations' has shape \(3, 1\)"),
        ({"reward": "x*"}, r"has no column 'x\*'"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        table(tmp_path, **options)


@pytest.mark.parametrize("text", ["", "ep,x1,u1,r,done\n", "\0\0\0", "\xff"])
def test_empty_and_foreign_tables_are_refused(tmp_path, text):
    with pytest.raises(DatasetError):
        table(tmp_path, text)
    (tmp_path / "x.parquet").write_text(text)
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        read_table(tmp_path / "x.parquet")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(DatasetError, match=r"must end in \.csv or \.parquet"):
        read_table(tmp_path / "x.xlsx")
    for reader in (read_npz, read_table):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            reader(tmp_path / "none.csv")


def test_without_polars_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offrl\[tables\]'"):
        table(tmp_path)
