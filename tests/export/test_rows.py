"""One file gives the same rows to training, evaluation, calibration, the gate and the client's `predict --file`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bet_client.__main__ import main as predict
from bet_client.texts import TextsError, read_texts

import serve
from export.rows import RowFiles, labelled_rows, texts_of
from train.data import load_corpus, load_rows
from train.errors import DataError
from train.splits import PARTS

HOSTILE = (
    'He said "superb", twice.',
    '"',
    "two\nlines",
    "two\r\nlines of Windows",
    "a carriage\rreturn",
    "  spaced, with a comma ",
    "NA",
    "007",
    "1.0",
    "#no comment",
    "a\u2028b\x0bc\x1cd\x85e",
    "good\0bad",
    "naïve 👩‍👩‍👧 e\u0301 \u202egnihton\u202c",
    "=1+1",
    "\\N",
)
TEXTS = [*HOSTILE, *(f"text {i} of the file" for i in range(60 - len(HOSTILE)))]
LABELS = [("neg", "pos")[i % 2] for i in range(60)]


def _csv(line_end: str, *, bom: bool = False, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["id", "text", "label"])
    writer.writerows(zip(range(60), TEXTS, LABELS, strict=True))
    return (("\ufeff" if bom else "") + out.getvalue()).encode()


def _jsonl(line_end: str, *, bom: bool = False, ascii_only: bool = False) -> bytes:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + line_end for row in rows)
    return (("\ufeff" if bom else "") + lines).encode()


FORMS = {
    "plain.csv": _csv("\n", quoting=csv.QUOTE_NONNUMERIC),  # else the writer leaves a lone \r unquoted
    "windows.csv": _csv("\r\n", bom=True),
    "quoted.csv": _csv("\r\n", bom=True, quoting=csv.QUOTE_ALL),
    "blank lines.csv": _csv("\n\n", quoting=csv.QUOTE_NONNUMERIC),
    "plain.jsonl": _jsonl("\n"),
    "windows.jsonl": _jsonl("\r\n", bom=True, ascii_only=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_file_is_the_same_rows_to_every_stage(  # inspect_ai#5353, #5474
    name: str, server: serve.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name])
    right = dict(zip(TEXTS, LABELS, strict=True))

    corpus = load_corpus(str(path), cache_dir=tmp_path / "cache")
    parts = [getattr(corpus, part) for part in PARTS]
    trained = {
        text: corpus.label_names[label]
        for part in parts
        for text, label in zip(part.texts, part.labels.tolist(), strict=True)
    }
    assert trained == right
    assert sum(map(len, parts)) == len(TEXTS)

    evaluated = load_rows(str(path), ("pos", "neg"), cache_dir=tmp_path / "cache")
    calibrated = labelled_rows(path, RowFiles(calibration=path), ("pos", "neg"))
    assert evaluated.texts == calibrated[0] == texts_of(path, "text") == TEXTS
    assert evaluated.labels.tolist() == calibrated[1] == [("pos", "neg").index(label) for label in LABELS]

    assert predict(["predict", "--file", str(path), "--url", server.grpc_url, "--json", "--timeout", "60"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == TEXTS


Reader = Callable[[Path], object]
READERS: dict[str, tuple[Reader, type[Exception]]] = {
    "fit": (lambda path: load_corpus(str(path)), DataError),
    "evaluate": (lambda path: load_rows(str(path), ("neg", "pos")), DataError),
    "calibrate": (lambda path: labelled_rows(path, RowFiles(calibration=path), ("neg", "pos")), DataError),
    "predict": (lambda path: list(read_texts(str(path))), TextsError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\nfine,pos\none, two,neg\n", "line 3: .*in double quotes"),
        (b"text,label\none, two,neg\nthree, four,pos\n", "line 2: .*in double quotes"),
        (b'text,label\nfine,pos\n"good" film,neg\n', "line 3: .*mend the quotes"),
        (b'text,label\n"never closed,pos\nfine,neg\n', "line 3: .*mend the quotes"),
        (b"text,text,label\none,two,pos\n", "'text' more than once"),
        ("text,label\ncafé,pos\n".encode("latin-1"), "UTF-8"),
        ("text,label\nfine,pos\n".encode("utf-16"), "UTF-8"),
        (b"review,label\nfine,pos\n", "no column 'text'"),
    ],
)
def test_a_file_that_one_stage_cannot_read_is_read_by_none(
    reader: str, content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    read, error = READERS[reader]
    with pytest.raises(error, match=said):
        read(path)


@pytest.mark.parametrize(
    ("names", "cells", "indices"),
    [
        (("negative", "positive"), [" positive", "negative "], [1, 0]),
        (("1", "2", "3", "4", "5"), ["5.0", "1", "+3"], [4, 0, 2]),
        (("-1", "1"), ["-1", "1.0"], [0, 1]),
        (("False", "True"), ["True", "False"], [1, 0]),
        (("negative", "positive"), ["1", "0"], [1, 0]),
        (("negative", "positive"), ["1.0", "0.0"], [1, 0]),
    ],
)
def test_a_label_that_trains_also_calibrates(
    names: tuple[str, ...], cells: list[str], indices: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"row {i},{cell}\n" for i, cell in enumerate(cells)))
    assert labelled_rows(path, RowFiles(calibration=path), names)[1] == indices
    assert load_rows(str(path), names).labels.tolist() == indices


@pytest.mark.parametrize(
    ("names", "cells", "said"),
    [
        (("1", "2"), ["1", "0"], "row 2 holds '0'"),  # classes named by numbers are never counted from 0
        (("bad", "good"), ["1", "2"], "rows 1 and 2 hold '1'"),
        (("bad", "good"), ["1", "good"], "row 1 holds '1'"),
        (("bad", "good"), ["0.5", "1"], "rows 1 and 2 hold '0.5'"),
        (("bad", "good"), ["-1", "1"], "rows 1 and 2 hold '-1'"),
        (("bad", "good"), ["good", ""], "column 'label' is empty in row 2"),
    ],
)
def test_a_label_that_is_no_class_is_named_by_its_row(
    names: tuple[str, ...], cells: list[str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"row {i},{cell}\n" for i, cell in enumerate(cells)))
    with pytest.raises(DataError, match=said):
        labelled_rows(path, RowFiles(calibration=path), names)
