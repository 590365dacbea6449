"""Reading power records: columns, units, times, empty cells, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.config import record as record_module
from controller.config.record import open_record
from controller.errors import BadInput
from controller.types import FloatArray


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, **options: object) -> tuple[FloatArray, FloatArray]:
    blocks = list(open_record(path, **options).blocks())  # type: ignore[arg-type]
    return np.concatenate([b.t_s for b in blocks]), np.concatenate([b.power_w for b in blocks])


def test_comments_are_skipped_and_columns_summed_in_their_units(tmp_path: Path) -> None:
    path = csv(
        tmp_path, "# source: a meter\n\nt_s,a_w,b_kw,c_kilowatt,d_megawatt,temp_c\n0,1,1,1,1,50\n# note\n1,2,2,2,2,51\n"
    )
    t, p = read(path)
    assert t.tolist() == [0.0, 1.0]
    assert p.tolist() == pytest.approx([1 + 1e3 + 1e3 + 1e6, 2 + 2e3 + 2e3 + 2e6])


def test_only_a_line_that_begins_with_a_hash_is_a_comment(tmp_path: Path) -> None:
    """In a cell it is a character like any other, whether the block holds an empty cell or not; nor does what Unicode
    counts as a new line end a comment."""
    for hole in ("5", ""):
        path = csv(tmp_path, f"t_s,note,pcc_w\n0,#a,5\n  # b\u2028c\n1,d,{hole}\n# end")
        assert read(path)[1].tolist() == [5.0, 5.0]


def test_pcc_w_wins_and_a_named_column_wins_over_it(tmp_path: Path) -> None:
    path = csv(tmp_path, "t_s,pcc_w,load_w,site power\n0,5,9,7\n1,6,9,8\n")
    assert read(path)[1].tolist() == [5.0, 6.0]
    assert read(path, column="load_w")[1].tolist() == [9.0, 9.0]
    assert read(path, column="site power", unit="MW", scale=2.0)[1].tolist() == pytest.approx([14e6, 16e6])


def test_an_empty_cell_holds_the_previous_value_and_before_the_first_the_first(tmp_path: Path) -> None:
    path = csv(tmp_path, "t_s,a_w,b_w\n0,,10\n1,,\n2,5,\n3,,30\n")
    assert read(path)[1].tolist() == [15.0, 15.0, 15.0, 35.0]


def test_empty_cells_hold_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is parsed fast must leave the last value for a block that has holes."""
    monkeypatch.setattr(record_module, "BLOCK_BYTES", 64)
    rows = [f"{i},{'' if i % 7 == 3 or 20 <= i < 40 else i * 10}" for i in range(100)]
    path = csv(tmp_path, "t_s,pcc_w\n" + "\n".join(rows) + "\n")
    expected, last = [], 0.0
    for i in range(100):
        last = last if i % 7 == 3 or 20 <= i < 40 else i * 10.0
        expected.append(last)
    t, p = read(path)
    assert t.tolist() == list(range(100)) and p.tolist() == expected


def test_iso_times_count_from_the_first(tmp_path: Path) -> None:
    path = csv(
        tmp_path, "time,pcc_w\n2026-03-01T23:59:59.500Z,1\n2026-03-02T00:00:00.250Z,2\n2026-03-02 01:00:01+01:00,3\n"
    )
    opened = open_record(path)
    assert opened.start_utc is not None and opened.start_utc.isoformat() == "2026-03-01T23:59:59.500000+00:00"
    assert read(path)[0].tolist() == pytest.approx([0.0, 0.75, 1.5])


def test_other_delimiters_bom_quotes_and_no_last_newline(tmp_path: Path) -> None:
    for delimiter in ",;\t":
        text = "\ufefft_s,pcc_w\r\n0,1\r\n1,2".replace(",", delimiter)
        assert read(csv(tmp_path, text))[1].tolist() == [1.0, 2.0]
    assert read(csv(tmp_path, '"t_s","pcc_w"\n"0","1"\n"1","2"\n'))[1].tolist() == [1.0, 2.0]


def test_samples_that_share_a_time_are_a_step(tmp_path: Path) -> None:
    t, p = read(csv(tmp_path, "t_s,pcc_w\n0,1\n1,1\n1,9\n2,9\n"))
    assert p.tolist() == [1.0, 1.0, 9.0, 9.0]
    assert (np.diff(t) > 0).all() and t.tolist() == pytest.approx([0, 1, 1, 2], abs=1e-5)


def test_voltage_and_frequency_come_along(tmp_path: Path) -> None:
    block = next(open_record(csv(tmp_path, "t_s,pcc_w,frequency_hz,voltage_pu\n0,1,60.1,0.99\n1,1,60,1\n")).blocks())
    assert block.voltage_pu is not None and block.voltage_pu.tolist() == [0.99, 1.0]
    assert block.frequency_hz is not None and block.frequency_hz.tolist() == [60.1, 60.0]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (b"", {}, "empty"),
        (b"\x00\x01\x02,\x00\n\xff", {}, "CSV"),
        (b"PNG\xff\xfe,\n1,2\n", {}, "UTF-8"),
        ("just words\nmore words\n", {}, "two columns"),
        ("0,1\n1,2\n", {}, "header"),
        ("t_s,pcc_w\n", {}, "no samples"),
        ("t_s,pcc_w\n0,1\n1,nan\n", {}, "line 3: 'nan'"),
        ("t_s,pcc_w\n0,1\n1,inf\n", {}, "line 3: 'inf'"),
        ("t_s,pcc_w\n0,1\n1,two\n", {}, "line 3: 'two'"),
        ("t_s,pcc_w\n0,1\nnan,2\n", {}, "line 3: 'nan'"),
        ("# c\nt_s,pcc_w\n0,1\n2,1\n1,1\n", {}, "line 5: '1': time runs backwards"),
        ("t_s,pcc_w\n0,1\n1,\n2\n", {}, "line 4: 1 cells"),
        ("t_s,pcc_w\n0,1,5\n1,2,5\n", {}, "line 2: 3 cells"),  # 1.5 with a decimal comma is not 1
        ("t_s,pcc_w\n0,1\n1,2 # odd\n", {}, "line 3: '2 # odd'"),
        ("t_s,pcc_w\n0,1\n1e400,2\n", {}, "line 3: '1e400'"),
        ("t_s,pcc_w,voltage_pu\n0,1,1\n1,2,1e400\n", {}, "line 3: '1e400'"),
        ("t_s,pcc_w\n0,1e300\n1,-1e300\n", {}, "beyond 1e+15 W"),
        ("t_s,pcc_w\n0,1\n1,2\n", {"scale": 1e306}, "beyond 1e+15 W"),
        ("t_s,pcc_w\n0,\n1,\n", {}, "no number"),
        ("t_s,site_mw\n0,1\n", {}, "--unit MW"),
        ("t_s,site_mw\n0,1\n", {"column": "site_mw"}, "--unit MW"),
        ("t_s,power\n0,1\n", {}, "--column"),
        ("t_s,pcc_w\n0,1\n", {"column": "load_w"}, "pcc_w"),
        ("t_s,pcc_w\n0,1\n", {"unit": "GW"}, "W, kW, MW"),
        ("t_s,pcc_w\n0,1\n", {"scale": 0.0}, "--scale"),
        ("t_s,pcc_w\n2026-13-01,1\n", {}, "ISO 8601"),
        ("t_s,pcc_w\n2026-01-01,1\nnoon,2\n", {}, "line 3: 'noon'"),
        ("t_s,pcc_w\n0,1\n2026-01-01,2\n", {}, "line 3"),
        ("t_s,pcc_w\n0,84000\n1,85,300\n2,84000\n", {}, "line 3: 3 cells, the header has 2"),  # no 85 W
        ("t_s,pcc_w,a,b\n0,84000,1,2\n1,85,300,1,2\n2,84000,1\n", {}, "line 3: 5 cells, the header has 4"),  # no 85 W
        ("t_s,pcc_w,a,b\n0,84000,1\n1,85,300,1,2\n2,84000,1,2\n", {}, "line 2: 3 cells, the header has 4"),
        ("t_s;pcc_w\n0;84,5\n1;85,3\n", {}, "'84,5'; a decimal point is needed"),
    ],
)
def test_a_wrong_record_is_told_what_is_wrong_in_one_line(
    tmp_path: Path, text: str | bytes, options: dict[str, object], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        read(csv(tmp_path, text), **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_backwards_across_blocks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BLOCK_BYTES", 40)
    rows = [f"{i if i != 30 else 5},{i}" for i in range(60)]
    with pytest.raises(BadInput, match=r"line 32: '5': time runs backwards"):
        read(csv(tmp_path, "t_s,pcc_w\n" + "\n".join(rows) + "\n"))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        open_record(tmp_path / "none.csv")
    with pytest.raises(BadInput, match="directory"):
        open_record(tmp_path)


def test_the_unit_flag_is_what_makes_a_header_in_mw_readable(tmp_path: Path) -> None:
    path = csv(tmp_path, "t_s,site_mw\n0,50\n1,51\n")
    assert read(path, unit="MW")[1].tolist() == pytest.approx([50e6, 51e6])
    assert open_record(path, unit="MW").highest_w() == pytest.approx(51e6)
