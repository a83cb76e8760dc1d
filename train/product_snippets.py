"""Product reviews as a shift: the rated Amazon snippets that come with VADER's source distribution, as a CSV.

`pip download vaderSentiment==3.3.2 --no-deps --no-binary :all:` fetches it. Twenty people rated each sentence from -4
to 4 (Hutto & Gilbert 2014); from half a point on, a mean counts as positive or negative, between as neither.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tarfile
from pathlib import Path

from train.errors import DataError, TrainError

_INNER, _FILE = "hutto_ICWSM_2014.tar.gz", "amazonReviewSnippets_GroundTruth.txt"
_CLEAR = 0.5


def write_product_snippets(distribution: Path, output: Path) -> int:
    """Write `text,label` rows with the labels negative and positive; return how many.

    Raises:
        DataError: if the distribution does not hold the ratings.
    """
    try:
        rows = _read(distribution)
    except (OSError, KeyError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{distribution} does not hold the rated product snippets of vaderSentiment 3.3.2 ({error}); fetch it with "
            "pip download vaderSentiment==3.3.2 --no-deps --no-binary :all:"
        ) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return len(rows)


def _read(distribution: Path) -> list[tuple[str, str]]:
    with tarfile.open(distribution) as outer, tarfile.open(fileobj=_member(outer, _INNER)) as inner:
        lines = _member(inner, _FILE).read().decode("utf-8", errors="replace").splitlines()
    rated = [(float(rating), text.strip()) for _, rating, text in (line.split("\t", 2) for line in lines if line)]
    clear = [(text, rating) for rating, text in rated if abs(rating) >= _CLEAR and text]
    return [(text, "positive" if rating > 0 else "negative") for text, rating in clear]


def _member(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    for found in archive.getnames():
        file = archive.extractfile(found) if found.rpartition("/")[2] == name else None
        if file is not None:
            return io.BytesIO(file.read())
    raise KeyError(name)


def main(arguments: list[str] | None = None) -> int:
    """Write the CSV; 0 done, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m train.product_snippets",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m train.product_snippets vaderSentiment-3.3.2.tar.gz build/products.csv",
    )
    parser.add_argument("distribution", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("output", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    try:
        rows = write_product_snippets(options.distribution, options.output)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {rows} snippets; python -m train evaluate CHECKPOINT --shift products={options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
