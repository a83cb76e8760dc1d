"""Every way of writing a class becomes a named class; what is no class is refused with its rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.errors import DataError
from train.labels import is_missing, match_labels, name_labels, name_rows


# tf#27707, happy-transformer#248
@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([0, 1, 1], ("0", "1"), [0, 1, 1]),
        (["0", "1", "1"], ("0", "1"), [0, 1, 1]),
        ([0.0, 1.0, 1.0], ("0", "1"), [0, 1, 1]),
        (["0.0", "1.0", "1"], ("0", "1"), [0, 1, 1]),
        ([False, True, True], ("False", "True"), [0, 1, 1]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
        ([5, 1, 3], ("1", "3", "5"), [2, 0, 1]),
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        (["neutral", " bad", "bad"], ("bad", "neutral"), [1, 0, 0]),
        (["01", "1", "10"], ("01", "1", "10"), [0, 1, 2]),
        (["1.5", "high", "1"], ("1", "1.5", "high"), [1, 2, 0]),
    ],
)
def test_values_become_named_classes_in_a_sensible_order(
    values: list[object], names: tuple[str, ...], ids: list[int]
) -> None:
    labels = name_labels({"rows": values}, None, "label")
    assert labels.names == names
    assert labels.ids["rows"].tolist() == ids
    assert labels.ids["rows"].dtype == np.int64


def test_the_spellings_of_a_class_are_recorded() -> None:
    labels = name_labels({"rows": ["1", "1.0", "0", "+1"]}, None, "label")
    assert dict(zip(labels.names, labels.values, strict=True)) == {"0": ("0",), "1": ("+1", "1", "1.0")}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 0.5, 2.0, 0.25], "rows 2 and 4 hold 0.5"),
        (["1", "2.5"], "row 2 holds '2.5'"),
        ([[1, 0], [0, 1]], "rows 1 and 2 hold [1, 0]"),
        ([1.0, float("inf")], "row 2 holds inf"),
        (["a", "a"], "at least two classes, but holds only 'a'"),
    ],
)
def test_what_is_no_class_is_refused_before_training(values: list[object], says: str) -> None:
    with pytest.raises(DataError) as refusal:
        name_labels({"file.csv": values}, None, "stars")
    assert says in str(refusal.value)
    assert "file.csv: column 'stars'" in str(refusal.value)


def test_a_fault_in_the_test_part_is_named_by_its_row_there() -> None:
    with pytest.raises(DataError, match=r"d \(test part\): .* row 1 holds 0\.5"):
        name_labels({"d": [0, 1], "d (test part)": [0.5]}, None, "label")


def test_declared_names_are_kept_in_their_order_and_unlabelled_rows_refused() -> None:
    assert name_labels({"d": [1, 0]}, ("pos", "neg"), "label").names == ("pos", "neg")
    with pytest.raises(DataError, match="row 2 holds -1"):
        name_labels({"d": [1, -1]}, ("pos", "neg"), "label")


def test_labels_of_another_file_are_matched_by_name() -> None:
    assert match_labels([1.0, "0", 1], ("0", "1"), "label", "f").tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="one of the classes 'neg', 'pos'; rows 1 and 3 hold 'bad'"):
        match_labels(["bad", "pos", "good"], ("neg", "pos"), "label", "f")


@given(st.lists(st.text(min_size=1).filter(lambda t: not is_missing(t)), min_size=2, unique_by=str.strip))
def test_any_names_map_to_themselves_and_back(values: list[str]) -> None:
    labels = name_labels({"rows": values}, None, "label")
    back = [labels.names[i] for i in labels.ids["rows"]]
    assert match_labels(values, labels.names, "label", "f").tolist() == labels.ids["rows"].tolist()
    assert sorted(set(back)) == sorted(labels.names)


def test_only_nothing_is_missing() -> None:
    assert all(map(is_missing, [None, "", " \n", float("nan")]))
    assert not any(map(is_missing, ["NA", "null", "None", 0, False, 0.0]))


def test_many_rows_are_named_shortly() -> None:
    assert name_rows([0]) == "row 1"
    assert name_rows(list(range(8)), "holds") == "rows 1, 2, 3, 4 and 5 (and 3 more) hold"
