"""Why a text got its answer: the n-grams that spoke for and against it, where they stand, and what the streams added.

The evidence is a sum, so it can be told term by term; the streams read words in their order, and are one number here:

    logit = α · evidence + γ · streams + β,    streams averaged over the orders

All numbers are nats of the logit towards the predicted class (`train.model.leading`), so positive speaks for it. The
posterior integrates over this logit's variance, so the probability is a little less sure than the logit alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import Checkpoint, load_production
from train.errors import ConfigError, DataError
from train.model.evidence import SIZES
from train.model.leading import towards_class
from train.page import table, write_document
from train.prediction import pack
from train.tokenizer import encode

REPORT = Path("build/explain/report.html")
_NAMED = 10  # n-grams on each side
_SHOWN_CHARACTERS = 60
_STYLE = """
p.text { white-space: pre-wrap; line-height: 1.9; } .unread { opacity: .45; }
"""
_FOR, _AGAINST = "46 160 67", "248 81 73"  # readable behind dark and light text alike


@dataclass(frozen=True)
class Term:
    """One n-gram."""

    text: str
    nats: float


@dataclass(frozen=True)
class Stretch:
    """One segment of the text, or one token."""

    first: int  # characters of the text
    last: int
    nats: float  # of a segment: of the n-grams that start in it; of a token: an equal share of those that cover it


@dataclass(frozen=True)
class Explanation:
    """The answer to one text and what it is made of, in nats towards the label unless said."""

    text: str
    label: str
    probability: float
    logit: float  # = evidence + streams + bias
    evidence: float  # α · evidence, the intercept included
    intercept: float  # α · θ_0
    streams: float  # γ · streams
    bias: float  # β
    streams_share: float  # of the absolute values of these three
    spoke_for: tuple[Term, ...]
    spoke_against: tuple[Term, ...]
    segments: tuple[Stretch, ...]
    tokens: tuple[Stretch, ...]


@dataclass(frozen=True)
class Explained:
    """The explanations of some texts."""

    texts: tuple[Explanation, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"texts": [asdict(text) for text in self.texts]}

    def lines(self) -> str:
        """For a terminal."""
        return "\n".join(line for text in self.texts for line in _lines(text))

    def write(self, path: Path = REPORT) -> Path:
        """Write the page; returns its path."""
        loudest = max((abs(token.nats) for text in self.texts for token in text.tokens), default=0.0)
        parts = [part for text in self.texts for part in _parts(text, loudest or 1.0)]
        return write_document(path, "What spoke for and against", parts, _STYLE)


def texts_to_explain(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts that were asked for.

    Raises:
        ConfigError: if there are none, or both texts and a file.
        DataError: if the file cannot be read, or a text is blank.
    """
    if file is not None and texts:
        raise ConfigError("both texts and --file are given; give one of them")
    if file is not None:
        try:
            texts = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file} cannot be read as UTF-8 text ({error}); give a file with one text a line"
            ) from error
    if not texts:
        raise ConfigError("there is no text; write some as arguments, or name a file with --file")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"text {number} is blank; leave it out")
    return list(texts)


def explain_texts(path: Path, texts: Sequence[str]) -> Explained:
    """Explain the answers of a production checkpoint.

    Raises:
        CheckpointError: if the folder is not one.
    """
    checkpoint = load_production(path)
    return Explained(tuple(explain(checkpoint, text) for text in texts))


@torch.no_grad()
def explain(checkpoint: Checkpoint, text: str) -> Explanation:
    """Explain the answer to one text that is not blank."""
    model = checkpoint.model.train(False)
    posterior = model.posterior
    config = model.config
    [document] = encode(checkpoint.tokenizer, [text], config.max_tokens, config.head_tokens)
    spans = _spans(checkpoint, text)
    batch = pack([document])
    tokens = model.read_tokens(*batch)
    parts, terms = model.components(*batch), model.evidence(tokens).terms
    probabilities = model.predict(*batch).probabilities[0]
    predicted = int(probabilities.argmax())
    scale = posterior.log_evidence_scale.exp()

    def towards(columns: Tensor) -> float:
        """[L] -> what it adds to the logit of the predicted class."""
        if len(columns) == 1:
            return float(columns[0] if predicted else -columns[0])
        return float(columns[predicted] - columns.mean())

    evidence, intercept = towards(scale * parts.evidence[0]), towards(scale * model.evidence.bias)
    streams = towards(posterior.log_trunk_scale.exp() * parts.trunk[0].mean(0))
    bias = towards(posterior.bias)
    nats = scale * towards_class(terms, torch.full_like(tokens.row, predicted))  # [T, 3]
    named = sorted(
        (
            Term(_written(text, spans[first : first + size + 1]), float(nats[first, size]))
            for first, size in nats.nonzero().tolist()
        ),
        key=lambda term: -abs(term.nats),
    )
    whole = abs(evidence) + abs(streams) + abs(bias)
    return Explanation(
        text=text,
        label=checkpoint.label_names[predicted],
        probability=float(probabilities[predicted]),
        logit=evidence + streams + bias,
        evidence=evidence,
        intercept=intercept,
        streams=streams,
        bias=bias,
        streams_share=abs(streams) / whole if whole else 0.0,
        spoke_for=tuple([term for term in named if term.nats > 0][:_NAMED]),
        spoke_against=tuple([term for term in named if term.nats < 0][:_NAMED]),
        segments=tuple(
            Stretch(spans[first][0], spans[min(first + config.segment_length, len(spans)) - 1][1], float(part.sum()))
            for first, part in zip(
                range(0, len(spans), config.segment_length), nats.split(config.segment_length), strict=True
            )
        ),
        tokens=tuple(Stretch(*span, share) for span, share in zip(spans, _shares(nats).tolist(), strict=True)),
    )


def _spans(checkpoint: Checkpoint, text: str) -> list[tuple[int, int]]:
    """Where in the text each token stands that the model reads; all of it for the one id of a text without tokens."""
    config = checkpoint.model.config
    spans: list[tuple[int, int]] = checkpoint.tokenizer.encode(text, add_special_tokens=False).offsets
    if len(spans) > config.max_tokens:
        tail = config.max_tokens - config.head_tokens
        spans = spans[: config.head_tokens] + spans[len(spans) - tail :]
    return spans or [(0, len(text))]


def _written(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Tokens as they stand in the text, on one line; a gap is shown where the model did not read what lies between."""
    between = [" … " if text[a:b].strip() else text[a:b] for (_, a), (b, _) in pairwise(spans)]
    words = [text[first:last] for first, last in spans]
    return " ".join("".join(part for pair in zip(words, [*between, ""], strict=True) for part in pair).split())


def _shares(nats: Tensor) -> Tensor:
    """Terms [T, 3] by the n-gram's first token -> [T], each term spread evenly over the tokens that it covers."""
    shares = torch.zeros(len(nats))
    for size in range(SIZES):
        part = nats[:, size] / (size + 1)
        for j in range(size + 1):
            shares[j:] += part[: len(part) - j]
    return shares


def _lines(explained: Explanation) -> list[str]:
    sides = (("for", explained.spoke_for), ("against", explained.spoke_against))
    return [
        f"{explained.label} {explained.probability:.3f}  {_printable(explained.text, _SHOWN_CHARACTERS)}",
        f"  logit    {explained.logit:+.2f} = evidence {explained.evidence:+.2f}, streams {explained.streams:+.2f} "
        f"({explained.streams_share:.0%}), bias {explained.bias:+.2f}",
        *(
            f"  {side:<7}  {', '.join(f'{_printable(term.text)} {term.nats:+.2f}' for term in terms)}"
            for side, terms in sides
            if terms
        ),
        f"  segments {', '.join(f'{segment.nats:+.2f}' for segment in explained.segments)}",
    ]


def _printable(text: str, most: int | None = None) -> str:
    """A text on one line, with nothing in it that could command a terminal, cut to `most` characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def _parts(explained: Explanation, loudest: float) -> list[str]:
    """HTML of one text; a token is as strong in colour as its nats against the `loudest` of the page."""
    shown, at = [], 0
    for token in explained.tokens:
        if token.first > at:  # spaces, or what the model did not read
            between = explained.text[at : token.first]
            shown.append(f'<span class="unread">{escape(between)}</span>' if between.strip() else escape(between))
        colour = _FOR if token.nats > 0 else _AGAINST
        words = escape(explained.text[max(token.first, at) : token.last])
        shown.append(
            f'<span title="{token.nats:+.3f}" style="background:rgb({colour}/{abs(token.nats) / loudest:.2f})">'
            f"{words}</span>"
        )
        at = max(at, token.last)
    shown.append(f'<span class="unread">{escape(explained.text[at:])}</span>')
    sums = (
        ("evidence", f"{explained.evidence:+.3f}", f"of which intercept {explained.intercept:+.3f}"),
        ("streams", f"{explained.streams:+.3f}", f"{explained.streams_share:.0%} of the absolute values"),
        ("bias", f"{explained.bias:+.3f}", ""),
        ("logit", f"{explained.logit:+.3f}", ""),
    )
    return [
        f"<h2>{escape(explained.label)} {explained.probability:.3f}</h2>",
        f'<p class="text">{"".join(shown)}</p>',
        table(("what", "nats", ""), sums),
        table(("spoke for", "nats"), [(term.text, f"{term.nats:+.3f}") for term in explained.spoke_for]),
        table(("spoke against", "nats"), [(term.text, f"{term.nats:+.3f}") for term in explained.spoke_against]),
        table(
            ("segment", "begins", "nats"),
            [
                (f"{i}", _printable(explained.text[s.first : s.last], _SHOWN_CHARACTERS), f"{s.nats:+.3f}")
                for i, s in enumerate(explained.segments, start=1)
            ],
        ),
    ]
