"""Requests and answers as bytes and tensors: pure functions, shared by all four transports.

A `Call` says what is asked; `http_request` and `tensors` put it into the form of a protocol, and `read_predictions`
turns the answered tensors into predictions. tritonclient does the packing of both protocols.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from tritonclient import http as triton_http

from bet_client.contract import EVIDENCE, INPUT, MAX_REQUEST_BYTES, ModelContract
from bet_client.deadline import Deadline
from bet_client.errors import IncompatibleModelError, InvalidInputError, ServerError
from bet_client.faults import from_http
from bet_client.types import Diagnostics, NgramEvidence, Prediction

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says where, in a body of JSON and tensors, the tensors begin."""

RETRY_AFTER = "Retry-After"
"""The HTTP header that says when a server which is unavailable wants to be asked again."""

PER_CLASS = ("probabilities", "prediction_set", "concentration", "assigned", "undecided")
ASSIGNED = 0.5
"""Probability from which on a text carries a label, where it may carry any number of them."""

Tensors = dict[str, NDArray[Any]]
Row = tuple[int, bytes]
"""A text's place in the caller's list, and its UTF-8 bytes."""


@dataclass(frozen=True)
class ReadConfig:
    """Ask for the model's configuration; the reply is a mapping."""

    model: str


@dataclass(frozen=True)
class CheckReady:
    """Ask whether the model is ready; the reply is a bool."""

    model: str


@dataclass(frozen=True)
class Infer:
    """Ask for the outputs of some texts; the reply is `Tensors`, or in tests a tuple of predictions."""

    model: str
    texts: tuple[bytes, ...]
    outputs: tuple[str, ...]


Call = ReadConfig | CheckReady | Infer


@dataclass(frozen=True)
class HttpRequest:
    """What goes over an HTTP connection."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


def encode_text(text: object) -> bytes:
    """A text as UTF-8, if it is one that any model can take.

    Raises:
        InvalidInputError: if it is not a string, is blank, or cannot be encoded.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"text is a {type(text).__name__}, not a str")
    if not text.strip():
        raise InvalidInputError("text is blank" if text else "text is empty")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"text has a lone surrogate, {text[error.start]!a} at position {error.start}, that UTF-8 cannot carry; "
            "decode the source with its right encoding"
        ) from error


def split_rows(rows: Sequence[Row], max_rows: int, max_bytes: int = MAX_REQUEST_BYTES) -> Iterator[list[Row]]:
    """Cut rows into requests, each of at most `max_rows` rows and, unless it is a single row, `max_bytes` bytes."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == max_rows or size + len(row[1]) > max_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row[1])
    if chunk:
        yield chunk


def tensors(protocol: ModuleType, call: Infer) -> tuple[list[Any], list[Any]]:
    """Inputs and requested outputs as objects of `tritonclient.grpc` or `tritonclient.http`."""
    # An object array keeps each text whole; a fixed-width bytes array would drop NUL bytes at a text's end.
    values = np.empty((len(call.texts), 1), dtype=np.object_)
    values[:, 0] = call.texts
    text = protocol.InferInput(INPUT, list(values.shape), "BYTES")
    text.set_data_from_numpy(values)
    return [text], [protocol.InferRequestedOutput(name) for name in call.outputs]


def http_request(call: Call, timeout: int | None = None) -> HttpRequest:
    """The HTTP request of a call, in the KServe v2 protocol.

    Args:
        call: what is asked.
        timeout: microseconds after which Triton is not to begin an inference any more; None leaves that open.
    """
    model = f"/v2/models/{quote(call.model, safe='')}"
    if isinstance(call, ReadConfig):
        return HttpRequest("GET", f"{model}/config", {}, None)
    if isinstance(call, CheckReady):
        return HttpRequest("GET", f"{model}/ready", {}, None)
    inputs, outputs = tensors(triton_http, call)
    body, header_length = triton_http.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, timeout=timeout
    )
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    return HttpRequest("POST", f"{model}/infer", headers, body)


def http_reply(
    call: Call,
    status: int,
    header_length: str | None,
    body: bytes,
    deadline: Deadline,
    *,
    retry_after: str | None = None,
) -> Any:
    """The reply in an HTTP answer, of which `header_length` and `retry_after` are the headers of those names.

    Raises:
        BetClientError: as the status says, or a `ServerError` if the answer is not one that Triton gives.
    """
    if isinstance(call, CheckReady) and status in (200, 400):
        return status == 200
    if status != 200:
        raise from_http(status, body, deadline, retry_after)
    try:
        if not isinstance(call, Infer):
            return json.loads(body)
        result = triton_http.InferenceServerClient.parse_response_body(
            body, header_length=None if header_length is None else int(header_length)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            f"{deadline.address} answers {body[:80]!r}, which is not Triton's; check the address"
        ) from error
    return read_tensors(result, call.outputs)


def read_tensors(result: Any, outputs: Sequence[str]) -> Tensors:
    """The outputs in a tritonclient result that are there.

    Raises:
        ServerError: if they cannot be read, because bytes are missing or shapes do not fit.
    """
    try:
        values = {name: result.as_numpy(name) for name in outputs}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ServerError(f"the answer holds tensors that are not Triton's: {error!r}; check the address") from error
    return {name: value for name, value in values.items() if value is not None}


def read_predictions(
    answers: Tensors, contract: ModelContract, *, rows: int, outputs: Sequence[str], diagnostics: bool
) -> list[Prediction]:
    """One prediction per row.

    Args:
        answers: by output name, each `[rows, width]`; how many n-grams are named is the model's to say.
        contract: names the classes.
        rows: how many texts were sent.
        outputs: the names that were asked for.
        diagnostics: whether to fill `Prediction.diagnostics`.

    Raises:
        IncompatibleModelError: if a tensor is missing or of another shape, a number is none, or the label is not the
            most probable class under the contract's names, which is how a model that was replaced meanwhile shows.
    """
    widths = {**dict.fromkeys(PER_CLASS, len(contract.labels)), "prediction_interval": 2}
    columns: dict[str, list[Any]] = {}
    for name in outputs:
        if name in EVIDENCE:
            continue
        shape = (rows, widths.get(name, 1))
        if name not in answers or answers[name].shape != shape:
            found = answers[name].shape if name in answers else "missing"
            raise IncompatibleModelError(f"output {name!r} of model {contract.model!r} is {found}, not {shape}")
        values = answers[name].tolist()
        columns[name] = values if name in widths else [value for (value,) in values]
    if set(EVIDENCE) <= set(outputs):
        columns["evidence"] = _read_evidence(answers, contract, rows)
    return [_read_row(columns, row, contract, diagnostics) for row in range(rows)]


def _read_evidence(answers: Tensors, contract: ModelContract, rows: int) -> list[tuple[NgramEvidence, ...]]:
    """The n-grams of each row.

    Args:
        answers: nats [rows, k], and n-grams [rows, k * m] in m pieces each, or [rows, 1] with one on each line.

    Raises:
        IncompatibleModelError: if the two do not fit each other, or the rows.
    """
    ngrams, nats = (answers.get(name, np.empty(())) for name in EVIDENCE)
    fits = ngrams.ndim == nats.ndim == 2 and len(ngrams) == len(nats) == rows and nats.shape[1] > 0
    count = nats.shape[1] if fits else 1
    by_line = fits and ngrams.shape[1] == 1
    if not fits or not (by_line or (ngrams.shape[1] and ngrams.shape[1] % count == 0)):
        raise IncompatibleModelError(
            f"outputs {', '.join(EVIDENCE)} of model {contract.model!r} are {ngrams.shape} and {nats.shape}"
        )
    found = []
    for pieces, values in zip(ngrams.tolist(), nats.tolist(), strict=True):
        size = len(pieces) // count
        if by_line:
            joined = pieces[0].split(b"\n")
        else:
            joined = [b"".join(pieces[i : i + size]) for i in range(0, len(pieces), size)]
        if len(joined) != count:
            raise IncompatibleModelError(f"model {contract.model!r} names {len(joined)} n-grams with {count} numbers")
        named = zip(joined, values, strict=True)
        found.append(tuple(NgramEvidence(raw.decode("utf-8"), value) for raw, value in named if value))
    return found


def _read_row(columns: dict[str, list[Any]], row: int, contract: ModelContract, diagnostics: bool) -> Prediction:
    def value(name: str) -> Any:
        return columns[name][row] if name in columns else None

    def text(name: str) -> str | None:
        raw = value(name)
        return None if raw is None else raw.decode("utf-8")

    def members(name: str) -> tuple[str, ...] | None:
        inside = value(name)
        return None if inside is None else tuple(itertools.compress(contract.labels, inside))

    def by_label(name: str) -> dict[str, float] | None:
        numbers = value(name)
        return None if numbers is None else dict(zip(contract.labels, numbers, strict=True))

    label, labels, probabilities = text("label"), members("assigned"), by_label("probabilities")
    number, interval = value("value"), value("prediction_interval")
    if fault := _fault(label, labels, probabilities, number, interval):
        raise IncompatibleModelError(
            f"model {contract.model!r} answers {fault}: these are not finite, or its parameter 'labels' does not fit "
            "its answers"
        )
    details = Diagnostics(
        concentration=by_label("concentration"),
        order_dispersion=value("order_dispersion"),
        evidence_budget=value("evidence_budget"),
        evidence=value("evidence"),
    )
    return Prediction(
        label=label,
        probabilities=probabilities,
        total=value("total"),
        aleatoric=value("aleatoric"),
        epistemic=value("epistemic"),
        review=value("review"),
        reason=text("reason"),
        prediction_set=members("prediction_set"),
        tokens=value("tokens"),
        truncated=value("truncated"),
        diagnostics=details if diagnostics else None,
        labels=labels,
        undecided=members("undecided"),
        value=number,
        prediction_interval=None if interval is None else (interval[0], interval[1]),
    )


def _fault(
    label: str | None,
    labels: tuple[str, ...] | None,
    probabilities: dict[str, float] | None,
    number: float | None,
    interval: Sequence[float] | None,
) -> str | None:
    """The part of an answer that contradicts itself or is no number, None where there is none."""
    if number is not None:
        return None if math.isfinite(sum((number, *(interval or ())))) else f"{number!r} within {interval!r}"
    if probabilities is None or not math.isfinite(sum(probabilities.values())):
        return f"{label!r} with probabilities {probabilities}"
    if labels is not None:
        right = tuple(name for name, p in probabilities.items() if p >= ASSIGNED)
        return None if labels == right else f"{labels!r} with probabilities {probabilities}"
    right_label = label is not None and probabilities.get(label, -1.0) >= max(probabilities.values())
    return None if right_label else f"{label!r} with probabilities {probabilities}"
