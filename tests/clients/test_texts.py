"""Files of texts are read as training reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bet_client.texts import TextsError, read_texts

from train.sources import read_file


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_text_lines_of_any_ends_with_or_without_a_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\n\nfour \xe2\x80\xa8 still four\rfive\x0bstill five")
    assert list(read_texts(path)) == ["one", "two", "", "four \u2028 still four", "five\x0bstill five"]


CSV = (
    b'\xef\xbb\xbfid,text,label\r\n1,"He said ""no"", twice",neg\r\n2,"line one\nline two",pos\r\n'
    b'3,"plain, with comma",pos\r\n4,caf\xc3\xa9,neg\r\n'
)
CSV_TEXTS = ['He said "no", twice', "line one\nline two", "plain, with comma", "café"]


def test_csv_with_marks_quotes_and_line_ends(tmp_path: Path) -> None:
    assert list(read_texts(write(tmp_path, "a.CSV", CSV))) == CSV_TEXTS


def test_csv_gives_the_rows_that_training_gets(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", CSV)
    assert list(read_texts(path)) == read_file(Path(path), "text", "label").rows.texts


def test_csv_fields_may_be_long_and_missing_ones_are_given_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"id,text\n1," + b"x" * 200_000 + b"\n2\n3,\n")
    assert list(read_texts(path)) == ["x" * 200_000, None, ""]


def test_jsonl_values_are_given_as_they_are(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a\\u2028b\\n"}\r\n\n{"text": 3, "id": 1}\n{"text": null}'.encode()
    assert list(read_texts(write(tmp_path, "a.jsonl", content))) == ["a\u2028b\n", 3, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,review\n1,x\n", r"has no column 'text', only \['id', 'review'\]"),
        ("a.csv", b"", r"has no column 'text', only \[\]"),
        ("a.csv", b'text\n"open', r"line 2: unexpected end of data; mend the quotes"),
        ("a.csv", b"id,text\n1,fine\n2,one, two\n", r"line 3: more cells than the header's 2"),
        ("a.csv", b"text,text\n1,2\n", "names 'text' more than once"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", b'["text"]\n', "line 1 is not an object with a field 'text'"),
        ("a.jsonl", b'{"review": "a"}\n', "line 1 is not an object with a field 'text'"),
        ("a.txt", "café".encode("latin-1"), "is not UTF-8"),
        ("a.parquet", b"PAR1", "only .txt"),
    ],
)
def test_a_file_in_another_form_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(TextsError, match=message):
        list(read_texts(write(tmp_path, name, content)))
