"""The one form of report: what holds, what does not, and what people and pipelines read of it."""

from __future__ import annotations

import json
import math
import operator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verdict import Check, Report, machine, parse_target, read_checks, versions

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(value=finite, bound=finite, direction=st.sampled_from(sorted(COMPARISONS)))
def test_a_check_holds_as_its_target_says(value: float, bound: float, direction: str) -> None:
    assert Check("x", value, "", f"{direction} {bound!r}").holds == COMPARISONS[direction](value, bound)


def test_a_target_may_have_spaces_around_it() -> None:
    compare, bound = parse_target("  <=   200 ")
    assert compare(200, bound)
    assert not compare(200.1, bound)


@pytest.mark.parametrize("target", ["", "200", "<=", "<=200", "=< 200", "<= fast", "<= nan", ">= inf", "<= 1 2"])
def test_what_is_no_target_is_refused_where_it_enters(target: str) -> None:
    with pytest.raises(ValueError, match="not a direction and a number"):
        parse_target(target)
    with pytest.raises(ValueError, match="not a direction and a number"):
        Check("x", 1.0, "", target)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_missing_or_non_finite_value_never_meets_a_target(value: float | None) -> None:
    assert Check("x", value, "", "<= 1").holds is False
    assert Check("x", value, "", ">= 1").holds is False
    assert Check("x", value).holds is None


def test_a_report_holds_where_no_target_is_missed_and_its_exit_status_follows() -> None:
    report = Report("load")
    report.add("latency_p50", 12.5, "ms", "<= 100")
    report.add("throughput", 100, "requests/s")
    assert report.holds
    assert report.exit_status() == 0
    report.add("error_rate", 0.02, "", "<= 0.01")
    assert not report.holds
    assert report.exit_status() == 1
    assert report.exit_status(report_only=True) == 0


def test_a_report_in_which_nothing_was_measured_does_not_hold() -> None:
    assert not Report("load").holds
    assert Report("load").exit_status() == 1


def test_the_written_report_is_json_and_its_checks_are_read_back(tmp_path: Path) -> None:
    report = Report("load", details={"seconds": [1, math.nan, {"p99": math.inf}], "pair": (1.5, None)})
    report.add("latency_p50", 12.5, "ms", "<= 100")
    report.add("latency_p99", math.nan, "ms", "<= 500")
    report.add("mean_batch_size", None)
    path = report.write(tmp_path / "load")
    assert path == tmp_path / "load" / "report.json"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["holds"] is False
    assert content["checks"][0] == {
        "name": "latency_p50",
        "value": 12.5,
        "unit": "ms",
        "target": "<= 100",
        "holds": True,
    }
    assert content["checks"][1]["value"] is None
    assert (content["seconds"], content["pair"]) == ([1, None, {"p99": None}], [1.5, None])
    assert content["versions"]["python"].startswith("3.")
    assert content["machine"]["processors"] >= 1
    assert read_checks(path) == [report.checks[0], Check("latency_p99", None, "ms", "<= 500"), report.checks[2]]


def test_the_default_place_is_the_commands_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report("load")
    report.add("requests", 1)
    assert report.write() == Path("build/load/report.json")


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    for value in (1, 2):
        report = Report("load")
        report.add("requests", value)
        report.write(tmp_path)
    assert [check.value for check in read_checks(tmp_path / "report.json")] == [2]


def test_a_detail_cannot_take_the_place_of_a_verdict() -> None:
    report = Report("load", details={"holds": True})
    report.add("error_rate", 1, "", "<= 0")
    with pytest.raises(ValueError, match="holds"):
        report.as_dict()


def test_the_table_shows_every_check_in_columns_and_marks_what_is_missed() -> None:
    report = Report("load")
    report.add("latency_p50", 12.34567, "ms", "<= 100")
    report.add("requests", 1500, "", ">= 1")
    report.add("throughput", 1144.4532, "requests/s")
    report.add("parity_onnx", 2.5e-7, "", "<= 1e-05")
    report.add("error_rate", 0.02, "", "<= 0.01")
    report.add("mean_batch_size", None)
    lines = report.table().splitlines()
    assert lines[0].split() == ["check", "value", "unit", "target"]
    assert lines[1].split() == ["latency_p50", "12.3457", "ms", "<=", "100", "holds"]
    assert lines[2].split() == ["requests", "1,500", ">=", "1", "holds"]
    assert lines[3].split() == ["throughput", "1,144.5", "requests/s"]
    assert lines[4].split() == ["parity_onnx", "2.5e-07", "<=", "1e-05", "holds"]
    assert lines[5].split() == ["error_rate", "0.02", "<=", "0.01", "MISSED"]
    assert lines[6].split() == ["mean_batch_size", "–"]
    ends = {
        line.index(value) + len(value) for line, value in zip(lines[1:4], ("12.3457", "1,500", "1,144.5"), strict=True)
    }
    assert len(ends) == 1, "values are not aligned on the right"


@given(st.floats())
def test_any_number_has_a_place_in_the_table(value: float) -> None:
    report = Report("load")
    report.add("x", value)
    assert "x" in report.table()


def test_machine_and_versions_name_what_can_change_a_figure() -> None:
    assert machine().keys() == {"processors", "memory_gib", "processor", "system"}
    assert {"python", "numpy", "locust"} <= versions().keys()
