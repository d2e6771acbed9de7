"""Weekly sales: the look-alike, files in every form, calendar, windows of the splits, profit."""

import zipfile
from datetime import date

import numpy as np
import polars
import pytest
import torch

from offrl.envs.inventory.sales import WeeklySales, from_christmas, load_sales, look_alike
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def sales() -> WeeklySales:
    return look_alike(items=7)


def rows_of(sales: WeeklySales, days: list[date]) -> polars.DataFrame:
    item, store, week = np.meshgrid(*(np.arange(n) for n in sales.values.shape), indexing="ij")
    return polars.DataFrame(
        {
            "item_nbr": 100 + item.ravel(),
            "store_nbr": 1 + store.ravel(),
            "date": [days[w] for w in week.ravel()],
            "unit_sales": sales.values.ravel().astype(float),
        }
    )


def weeks(count: int) -> list[date]:
    return [date.fromordinal(date(2013, 1, 1).toordinal() + 7 * k) for k in range(count)]


def test_the_look_alike_looks_alike():
    """Mean some 85 units, returns about 1 %, some weeks with nothing, a peak before Christmas."""
    sales = look_alike()
    values = sales.values
    assert values.shape == (288, 21, 171)
    assert 60 < values.mean() < 120
    assert 0.005 < (values < 0).mean() < 0.02
    assert 0.0 < (values == 0).mean() < 0.1
    days = np.array(sales.days_from_christmas)
    peak, rest = values[..., (days > -15) & (days < 0)], values[..., abs(days) > 60]
    assert 1.3 < peak.mean() / rest.mean() < 1.7
    np.testing.assert_array_equal(values, look_alike().values)


def test_calendar():
    assert [from_christmas(date(2013, 12, d)) for d in (20, 25, 31)] == [-5, 0, 6]
    assert from_christmas(date(2013, 1, 1)) == 7
    assert from_christmas(date(2013, 7, 1)) == -177


@pytest.mark.parametrize("form", ["pt", "csv", "parquet", "folder"])
def test_every_form_gives_the_same_sales(sales, tmp_path, form):
    path = tmp_path / f"weekly_sales.{'pt' if form == 'folder' else form}"
    if form in ("pt", "folder"):
        torch.save(torch.from_numpy(sales.values), path)
    else:
        table = rows_of(sales, weeks(171)).sample(fraction=1.0, shuffle=True, seed=0)
        table.write_csv(path) if form == "csv" else table.write_parquet(path)
    got = load_sales(tmp_path if form == "folder" else path)
    np.testing.assert_array_equal(got.values, sales.values)
    assert got.days_from_christmas == sales.days_from_christmas


def test_a_week_without_a_row_sold_nothing(sales, tmp_path):
    table = rows_of(sales, weeks(171)).slice(1)
    table.write_csv(tmp_path / "few.csv")
    got = load_sales(tmp_path / "few.csv").values
    assert got[0, 0, 0] == 0
    np.testing.assert_array_equal(got[0, 0, 1:], sales.values[0, 0, 1:])


def test_dates_beside_a_tensor_are_read(sales, tmp_path):
    torch.save(torch.from_numpy(sales.values), tmp_path / "weekly_sales.pt")
    (tmp_path / "dates_with_info.csv").write_text(
        "date,days_from_christmas\n" + "".join(f"d{k},{k % 90}\n" for k in range(242))
    )
    assert load_sales(tmp_path).days_from_christmas[:3] == (0.0, 1.0, 2.0)


def test_splits_are_windows_of_the_weeks(sales):
    """Training weeks 0-110 of which 16 are history; test weeks 118-170."""
    setting = load_setting("favorita_21_stores", data=sales)
    train, test = setting.draw("train"), setting.draw("test")
    assert (train.periods, test.periods, train.history) == (95, 37, 16)
    values = torch.from_numpy(sales.values)
    assert torch.equal(test.demands, values[:, :, 118:171].permute(2, 0, 1))
    seen = test.observe(test.initial, 0)
    assert torch.equal(seen.past_demand, values[:, :, 118:134])
    assert seen.days_from_christmas == sales.days_from_christmas[134]
    last = test.observe(test.initial, 36)
    assert torch.equal(last.past_demand, values[:, :, 154:170])
    assert test.initial.abs().sum() == 0
    network = setting.network
    assert (network.stores, network.upstream, network.width, network.profit) == (21, 3, 6, True)
    assert len(network.edges) == 3 * 21 - 2 - 5 - 1 + 3
    assert {e.lead_time for e in network.edges if e.source == "warehouse 1"} == {5, 6}
    assert {e.lead_time for e in network.edges if e.source == "warehouse 2"} == {1, 2}


def test_single_series_have_their_own_margins_and_lead_times(sales):
    setting = load_setting("favorita_one_store", data=sales)
    train = setting.draw("train")
    assert len(train) == 7 * 21
    assert train.parameters.underage.shape == (147, 1)
    assert 6.3 < train.parameters.underage.min() < train.parameters.underage.max() < 11.7
    assert set(train.parameters.lead_times.flatten().tolist()) == {4, 5, 6}
    torch.testing.assert_close(train.parameters.underage, setting.draw("test").parameters.underage)
    few = setting.resized(train=5).draw("train")
    assert torch.equal(few.parameters.lead_times, train.parameters.lead_times[:5])


def test_margins_of_the_network_are_those_of_the_stores_for_every_item(sales):
    """The official file asks for both 'by store' and 'by item', and the first wins: here it is said."""
    setting = load_setting("favorita_21_stores", data=sales)
    p = setting.draw("train").parameters.underage
    assert p.shape == (24,)
    assert len(p[3:].unique()) == 21
    assert float(p[3:].min()) >= 6.3
    assert float(p[3:].max()) <= 11.7


def test_profit_is_margin_times_sales_less_holding(sales):
    """One order of 1000 units at t = 0: profit p d until it is used up, and holding on the rest; by hand."""
    setting = load_setting("favorita_one_store", data=sales, clip_negative=True).resized(train=3)
    drawn = setting.draw("train")
    orders = lambda o: torch.full((3, 1), 1000.0 * (o.period == 0))  # noqa: E731
    costs = rollout(orders, drawn, periods=12).costs.sum(-1)
    for b in range(3):
        p, L = drawn.parameters.underage[b].item(), int(drawn.parameters.lead_times[b])
        stock = 0.0
        for t in range(12):
            stock += 1000.0 * (t == L)
            sold = min(stock, drawn.demands[16 + t, b].item())
            stock -= sold
            assert costs[t, b].item() == pytest.approx(-p * sold + stock, rel=1e-5, abs=1e-4)


def test_returned_goods_are_kept_unless_clipped():
    """A negative week raises the stock and costs its margin, as the plain formula has it."""
    sales = look_alike(items=1, stores=1, weeks=171)
    sales.values[0, 0, 16] = -4.0
    kept = load_setting("favorita_one_store", data=sales).draw("train")
    result = rollout(lambda o: torch.zeros(1, 1), kept, periods=1, record=True)
    p = kept.parameters.underage.item()
    assert result.stocks[1, 0, 0, 0].item() == 4.0
    assert result.costs.item() == pytest.approx(4 * p + 4)
    clipped = load_setting("favorita_one_store", data=sales, clip_negative=True).draw("train")
    assert clipped.demands[16].item() == 0
    assert rollout(lambda o: torch.zeros(1, 1), clipped, periods=1).costs.item() == 0


def test_both_names_of_the_publication_work():
    assert load_setting("many_warehouses_real_data_lost_demand").name == "favorita_21_stores-v1"


def write(tmp_path, text: str, name: str = "weekly_sales.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


HEAD = "item_nbr,store_nbr,date,unit_sales\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,store_nbr,date,unit_sales\n1,1,2013-01-01,4\n", "no column 'item_nbr'"),
        (HEAD + "1,1,2013-01-01,4\n1,1,2013-01-01,5\n", "item 1, store 1 has two rows for 2013-01-01"),
        (HEAD + "1,1,2013-01-01,4\n1,1,2013-01-05,5\n", "2013-01-05 is not a whole number of weeks"),
        (HEAD + "1,1,2013-01-01,4\n1,1,2013-01-08,many\n", "line 3: unit_sales must be a number, got 'many'"),
        (HEAD + "1,1,2013-01-01,\n", "line 2: unit_sales must be a number, got None"),
        (HEAD + ",1,2013-01-01,4\n", "line 2: item_nbr is empty"),
        (HEAD, "the table has no rows"),
        (HEAD + "1,1,32.1.2013,4\n", "line 2: '32.1.2013' is not a date; write them as 2013-01-31"),
        (HEAD + "1,1,2013-01-01,nan\n", "not finite at item 0, store 0, week 0"),
        ("", "cannot be read as a table"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        load_sales(write(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"nonsense", "not a file that torch.save wrote"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ({"a": 1}, "holds a dict, want a tensor"),
        (date(2013, 1, 1), "holds datetime.date, which is not read"),
        (torch.zeros(4, 4), r"must be \(items, stores, weeks\), got shape \(4, 4\)"),
        (torch.tensor(3.0), r"got shape \(\)"),
        (torch.zeros(1, 1, 2, dtype=torch.complex64), "of torch.complex64"),
    ],
)
def test_what_is_wrong_with_a_tensor_file_is_said(tmp_path, content, message):
    path = tmp_path / "weekly_sales.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(DatasetError, match=message):
        load_sales(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_tensor_file_is_never_a_crash(tmp_path, sales):
    """Bytes of the pickle inside changed at random: it is read, or refused in one line."""
    path, random = tmp_path / "weekly_sales.pt", np.random.default_rng(0)
    torch.save(torch.from_numpy(sales.values), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    refused = 0
    for _ in range(150):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                changed = bytearray(content)
                if name.endswith("data.pkl"):
                    changed[random.integers(len(changed))] = random.integers(256)
                archive.writestr(name, bytes(changed))
        try:
            load_sales(path)
        except DatasetError as error:
            refused += "damaged" in str(error)
    assert refused > 30
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="cut short"):
        load_sales(path)


def test_the_calendar_beside_a_tensor_is_checked(tmp_path, sales):
    torch.save(torch.from_numpy(sales.values), tmp_path / "weekly_sales.pt")
    for text, message in (
        ("date\n2013-01-01\n", "no column 'days_from_christmas'"),
        ("days_from_christmas\n7\nsoon\n", "line 3: days_from_christmas must be a number, got 'soon'"),
        ("days_from_christmas\n7\n", "171 weeks of sales but 1 dates"),
    ):
        write(tmp_path, text, "dates_with_info.csv")
        with pytest.raises(DatasetError, match=message):
            load_sales(tmp_path)


def test_other_errors(tmp_path, sales):
    with pytest.raises(FileNotFoundError, match="holds none of weekly_sales.pt"):
        load_sales(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_sales(tmp_path / "x.csv")
    with pytest.raises(DatasetError, match="are .pt, .csv or .parquet, not '.xls'"):
        load_sales(write(tmp_path, "", "sales.xls"))
    with pytest.raises(ConfigError, match="needs 171 weeks of sales, look-alike has 100"):
        load_setting("favorita_21_stores", data=look_alike(items=2, weeks=100))
    with pytest.raises(ConfigError, match="has 21 stores, look-alike has 3"):
        load_setting("favorita_21_stores", data=look_alike(items=2, stores=3))
    with pytest.raises(ConfigError, match="takes no data"):
        load_setting("one_store_lost", data=sales)
