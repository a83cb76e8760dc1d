"""`python -m bet_client predict`: the client for the shell.

Prints one line per text as the answers come, or with `--json` one JSON object per text.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from bet_client.errors import BetClientError, ConnectionFailedError, IncompatibleModelError, ModelNotFoundError
from bet_client.flow import Answer
from bet_client.settings import DEFAULT_MAX_ROWS, DEFAULT_TIMEOUT
from bet_client.sync import Client
from bet_client.table import Table
from bet_client.texts import TextsError, read_texts
from bet_client.types import Prediction

EPILOG = """examples:
  python -m bet_client predict "A dull, overlong film." "I loved every minute."
  python -m bet_client predict --file reviews.csv --url localhost:8000 --protocol http --json
  cat reviews.txt | python -m bet_client predict

exit status: 0 all texts answered, 1 some text has an error instead, 2 wrong use
"""

# After one of these the remaining texts would only meet the same.
_HOPELESS = (ConnectionFailedError, ModelNotFoundError, IncompatibleModelError)


class WrongUseError(Exception):
    """What was asked cannot be done; the message is one line that says what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # an old terminal's encoding
    try:
        texts = _texts(options.text, options.file)
        with _client(options) as client:
            return _predict(client, texts, as_json=options.json, diagnostics=options.diagnostics)
    except (WrongUseError, TextsError) as error:
        print(f"python -m bet_client predict: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has seen enough. What is still buffered must not be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bet_client", description="Ask the served text classifier.")
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser(
        "predict",
        help="classify texts and say where a human should look",
        description="Classify texts and say where a human should look.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("text", nargs="*", metavar="TEXT", help="texts; without any, standard input is read")
    predict.add_argument(
        "--file", metavar="FILE", help=".txt (one text a line), .csv or .jsonl (column `text`), - for standard input"
    )
    predict.add_argument(
        "--url",
        metavar="HOST:PORT",
        help="default: localhost, port 8001 for gRPC or 8000 for HTTP; several with commas between",
    )
    predict.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="default: grpc")
    predict.add_argument("--model", default="bet", help="served model (default: bet)")
    predict.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=f"for each {DEFAULT_MAX_ROWS} texts (default: {DEFAULT_TIMEOUT:g})",
    )
    predict.add_argument("--diagnostics", action="store_true", help="also show how the model came to its answer")
    predict.add_argument("--json", action="store_true", help="print one JSON object per text")
    return parser


def _texts(texts: list[str], file: str | None) -> Iterator[Any]:
    """The texts that were asked for, read as far as the first one."""
    if texts and file is not None:
        raise WrongUseError("both texts and --file are given; give one of them")
    if texts:
        return iter(texts)
    if file is None and sys.stdin.isatty():
        raise WrongUseError("there is no text; write some as arguments, name a file with --file, or pipe text in")
    source = read_texts("-" if file is None else file)
    first = list(itertools.islice(source, 1))
    if not first:
        raise WrongUseError(f"{'standard input' if file in (None, '-') else file} holds no text")
    return itertools.chain(first, source)


def _client(options: argparse.Namespace) -> Client:
    try:
        return Client(options.url, protocol=options.protocol, model=options.model, timeout=options.timeout)
    except ValueError as error:
        raise WrongUseError(str(error)) from error


def _predict(client: Client, texts: Iterator[Any], *, as_json: bool, diagnostics: bool) -> int:
    """Print an answer per text, a request's worth at a time, so that a long file shows progress and needs no memory."""
    table = Table(diagnostics=diagnostics)
    failed = False
    while batch := list(itertools.islice(texts, DEFAULT_MAX_ROWS)):
        answers = client.predict_many(batch, diagnostics=diagnostics)
        lines = _json_lines(batch, answers) if as_json else table.lines(batch, answers)
        print("\n".join(lines), flush=True)
        errors = [answer for answer in answers if isinstance(answer, BetClientError)]
        failed = failed or bool(errors)
        hopeless = next((error for error in errors if isinstance(error, _HOPELESS)), None)
        if hopeless is not None and next(texts, texts) is not texts:
            print("python -m bet_client predict: stopped; the remaining texts were not sent", file=sys.stderr)
            break
    return 1 if failed else 0


def _json_lines(texts: Iterable[Any], answers: Iterable[Answer]) -> Iterator[str]:
    for text, answer in zip(texts, answers, strict=True):
        if isinstance(answer, Prediction):
            yield json.dumps({"text": text, **dataclasses.asdict(answer)})
        else:
            yield json.dumps({"text": text, "error": {"type": type(answer).__name__, "message": str(answer)}})


if __name__ == "__main__":
    sys.exit(main())
