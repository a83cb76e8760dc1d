"""Text that is nothing like what was learnt: what a model that knows its limits should call unfamiliar.

All of it lies on the machine already: read-me files and licences of installed distributions, source code of Python's
standard library, translations of installed programs into other languages, and the corpus's own words shaken. Pieces
are as long, in words, as the texts that they are compared with, so that length tells nothing.
"""

from __future__ import annotations

import ast
import csv
import gettext
import importlib.metadata
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from train.stretches import stretch

MOST = 400  # texts of a kind
_LEAST_WORDS = 120  # of a document that is worth cutting from
_CATALOGUES = ("/usr/share/locale", "/usr/share/vim")
_LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
_NOT_OTHER = ("en", "C")
_MOST_CATALOGUES = 100  # are read, evenly chosen: a base system has a thousand
_SENTENCE = 5  # words of a message that is one; the others are names and labels


def unfamiliar_texts(training: Sequence[str], lengths: NDArray[np.int64], *, seed: int = 0) -> dict[str, list[str]]:
    """Texts by kind; a kind of which this machine has nothing is missing.

    Args:
        training: texts that the model learnt from, whose words are shaken.
        lengths: [N] words of the texts to compare with; pieces draw theirs from these.
        seed: of everything random.

    Returns:
        `documents` (read-me files, licences), `code`, `word_salad` (each word of the training texts as likely as any
        other), `unigram_salad` (words as frequent as there), `other_languages`.
    """
    words = [word for text in training for word in text.split()]
    vocabulary = sorted(set(words))

    def salad(of: list[str], random: np.random.Generator) -> list[str]:
        wanted = random.choice(lengths, MOST)
        return [" ".join(of[i] for i in random.integers(0, len(of), n)) for n in wanted]

    kinds: dict[str, Callable[[np.random.Generator], list[str]]] = {
        "documents": lambda random: _pieces(_documents(), lengths, random),
        "word_salad": lambda random: salad(vocabulary, random),
        "unigram_salad": lambda random: salad(words, random),
        "other_languages": lambda random: _pieces(_translations(), lengths, random),
        "code": lambda random: _pieces(_code(), lengths, random),
    }
    made = {name: make(np.random.default_rng((seed, i))) for i, (name, make) in enumerate(kinds.items())}
    return {name: texts for name, texts in made.items() if texts}


def further_texts(training: Sequence[str], lengths: NDArray[np.int64], *, seed: int = 1) -> dict[str, list[str]]:
    """Unfamiliar kinds by which nothing was chosen.

    Returns:
        `headers` (C and C++ of installed distributions), `manuals` (docstrings: English prose, and no review), `markup`
        (HTML, CSS and JavaScript), `scrambled` (training texts with the letters of each word shuffled).
    """

    def scrambled(random: np.random.Generator) -> Iterator[str]:
        for text in training[:: len(training) // MOST + 1]:
            yield " ".join("".join(random.permutation(list(word))) for word in text.split())

    kinds: dict[str, Callable[[np.random.Generator], Iterator[str]]] = {
        "headers": lambda _: _installed(".h", ".hpp"),
        "manuals": lambda _: (_docstrings(text) for text in _installed(".py", of="scipy")),
        "markup": lambda _: _installed(".html", ".css", ".js"),
        "scrambled": scrambled,
    }
    generators = {name: np.random.default_rng((seed, i)) for i, name in enumerate(kinds)}
    made = {name: _pieces(make(generators[name]), lengths, generators[name]) for name, make in kinds.items()}
    return {name: texts for name, texts in made.items() if texts}


def _pieces(documents: Iterable[str], lengths: NDArray[np.int64], random: np.random.Generator) -> list[str]:
    """One random stretch of each of at most `MOST` documents, evenly chosen among all."""
    split = [words for document in documents if len(words := document.split()) >= _LEAST_WORDS]
    chosen = np.unique(np.linspace(0, len(split) - 1, min(MOST, len(split))).astype(int)) if split else []
    pieces = []
    for index in chosen:
        pieces.append(" ".join(stretch(split[index], int(random.choice(lengths)), random)))
    return pieces


def _documents() -> Iterator[str]:
    """Read-me and licence files of the installed distributions."""
    for distribution in _distributions():
        readme = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(readme, str):
            yield readme
        yield from _files(distribution, lambda file: file.name.upper().startswith(_LICENCES))


def _installed(*suffixes: str, of: str | None = None) -> Iterator[str]:
    """Files of installed distributions with these suffixes."""
    for distribution in _distributions():
        if of in (None, distribution.metadata["Name"]):
            yield from _files(distribution, lambda file: file.suffix in suffixes)


def _distributions() -> list[importlib.metadata.Distribution]:
    return sorted(importlib.metadata.distributions(), key=lambda found: str(found.metadata["Name"]))


def _files(distribution: importlib.metadata.Distribution, wanted: Callable[[PurePath], bool]) -> Iterator[str]:
    # Its record, not `distribution.files`: once imported, the package importlib-metadata gives distributions of its own
    # that look for each of some hundred thousand files first.
    for name, *_ in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        path = Path(str(distribution.locate_file(name)))
        if wanted(PurePath(name)) and path.is_file():
            yield path.read_text(encoding="utf-8", errors="ignore")


def _docstrings(source: str) -> str:
    """What a module says of its functions and classes."""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    return " ".join(text for text in found if text)


def _code() -> Iterator[str]:
    """Modules of Python's standard library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="ignore")


def _translations() -> Iterator[str]:
    """Messages of installed programs in other languages, a catalogue each."""
    found = [path for folder in _CATALOGUES for path in sorted(Path(folder).rglob("*.mo")) if _is_other(path)]
    for path in found[:: len(found) // _MOST_CATALOGUES + 1]:
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except (OSError, ValueError, LookupError):
            continue  # not every catalogue says its encoding rightly
        sentences = [
            said
            for asked, said in catalogue.items()
            if asked and isinstance(said, str) and len(said.split()) >= _SENTENCE
        ]
        for start in range(0, min(len(sentences), 1000), 50):
            yield " ".join(sentences[start : start + 50])


def _is_other(catalogue: Path) -> bool:
    """Whether a catalogue's folder names a language that is not English, in UTF-8."""
    language = catalogue.parent.parent.name
    return language.split("_")[0].split("@")[0] not in _NOT_OTHER and ("." not in language or "UTF-8" in language)
