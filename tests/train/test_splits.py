"""Parts do not overlap, do not leak, hold every class, and follow DESIGN's fold rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import DataError
from train.splits import PARTS, assign, first_rows, remove_duplicates, sha256_of_rows

labellings = st.lists(st.integers(0, 2), min_size=150, max_size=400).filter(
    lambda x: min(np.bincount(x, minlength=3)) >= 40
)


@settings(max_examples=50)
@given(labellings, st.integers(0, 4), st.booleans(), st.integers(1, 2))
def test_the_parts_hold_every_row_once_and_every_class(
    values: list[int], fold: int, has_test: bool, held_out_blocks: int
) -> None:
    labels = np.array(values)
    parts = assign(labels, ("a", "b", "c"), fold, has_test=has_test, held_out_blocks=held_out_blocks)
    assert set(parts) == set(PARTS) - ({"test"} if has_test else set())
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    assert all(set(labels[rows]) == {0, 1, 2} for rows in parts.values())


def test_twenty_blocks_go_to_the_parts_by_the_fold_rule() -> None:
    labels = np.zeros(200, dtype=np.int64)
    for fold in range(5):
        parts = assign(labels, ("a",), fold, has_test=False)
        block = {part: sorted({row // 10 for row in rows}) for part, rows in parts.items()}
        around = [(4 * fold + k) % 20 for k in range(20)]
        assert block["test"] == sorted(around[:4])
        assert block["train"] == sorted(around[4:18])
        assert (block["validation"], block["calibration"]) == ([around[18]], [around[19]])


def test_every_row_is_tested_in_exactly_one_fold() -> None:
    labels = np.tile([0, 1, 1], 100)
    tested = np.concatenate([assign(labels, ("a", "b"), fold, has_test=False)["test"] for fold in range(5)])
    assert sorted(tested) == list(range(300))


def test_a_class_too_small_for_every_part_is_named_with_its_count() -> None:
    labels = np.array([0] * 60 + [1] * 1 + [2] * 39)
    with pytest.raises(DataError, match=r"every class needs 40 different texts .* but 'rare' has 1, 'few' has 39"):
        assign(labels, ("many", "rare", "few"), 4, has_test=False)


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="fold 5 does not exist; choose 0 to 4"):
        assign(np.zeros(100, dtype=np.int64), ("a",), 5, has_test=False)


def test_duplicates_go_and_contradictions_go_with_all_their_copies() -> None:
    texts = ["good film", "good film", "good<br />film", "odd", "odd ", "bad"]
    cleaned = remove_duplicates(texts, np.array([1, 1, 1, 0, 1, 0]))
    assert cleaned.keep.tolist() == [0, 5]
    assert (cleaned.exact_duplicates, cleaned.near_duplicates) == (1, 1)
    assert cleaned.contradictory_rows == (3, 4)


@given(st.lists(st.tuples(st.sampled_from(["a", "a ", "b", " b", "c\n"]), st.integers(0, 1)), min_size=1))
def test_every_row_is_either_kept_or_counted_as_removed(rows: list[tuple[str, int]]) -> None:
    cleaned = remove_duplicates([text for text, _ in rows], np.array([label for _, label in rows]))
    removed = cleaned.exact_duplicates + cleaned.near_duplicates + len(cleaned.contradictory_rows)
    assert len(cleaned.keep) + removed == len(rows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 80))
def test_a_limit_keeps_every_class_and_the_order(values: list[int], limit: int) -> None:
    labels = np.array(values)
    rows = first_rows(labels, limit)
    assert set(labels[rows]) == set(values)
    assert min(limit, len(values)) <= len(rows) <= max(limit, 1) + len(set(values))
    assert (np.diff(rows) > 0).all()


def test_the_hash_tells_rows_apart_that_concatenate_alike() -> None:
    assert sha256_of_rows(["ab"], ["c"]) != sha256_of_rows(["a"], ["bc"])
    assert sha256_of_rows(["a", "b"], [0, 1]) != sha256_of_rows(["b", "a"], [1, 0])
