"""The bar that the model must clear: TF-IDF of words and word pairs, and logistic regression.

Fitted on the training part alone, its one strength parameter chosen by log-likelihood on the validation part, as fair
as a baseline can be: with scikit-learn's default strength it looks .04 nats worse on IMDB than it is. Temperature and
error budget come from the calibration part, as the model's do. Its probabilities are kept beside the checkpoint under
the hash of the rows, so that a second evaluation of the same corpus is quick.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from train.calibration import Calibration, fitting_and_scoring
from train.data import Corpus
from train.errors import DataError
from train.metrics import SMALLEST_PROBABILITY, correct, entropy, nll
from train.splits import sha256_of_rows
from train.temperature import fit_temperature

# On IMDB validation NLL is flat around 30 (.2740, .2640, .2710 at 10, 30, 100); the ends are there for other corpora.
STRENGTHS = (3.0, 10.0, 30.0, 100.0)
_CALIBRATION = "calibration rows"
_MARKUP = re.compile(r"<br\s*/?>")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline's answers.

    Attributes:
        probabilities: float64 [rows, classes] for each text list that was asked for, at its temperature.
        calibration: its scores on the calibration rows that fitted nothing.
        temperature: by which its logits are divided, fitted on the others.
        strength: the chosen C of logistic regression (the inverse of its penalty).
        validation_nll: nats per row, for each C tried.
        seconds: what fitting and predicting took when it was done.
    """

    probabilities: dict[str, NDArray[np.float64]]
    calibration: Calibration
    temperature: float
    strength: float
    validation_nll: dict[str, float]
    seconds: float


def fit_baseline(corpus: Corpus, texts: Mapping[str, list[str]], cache: Path | None = None) -> Baseline:
    """Fit on the corpus and predict the given lists of texts, or read what an earlier call with the same rows found.

    Args:
        corpus: its training part is fitted, its validation part chooses C, its calibration part the temperature.
        texts: name → texts to predict.
        cache: folder for the answers; None keeps nothing.

    Raises:
        DataError: if the training texts have no word in common.
    """
    file = None if cache is None else cache / f"baseline-{_key(corpus, texts)[:16]}.npz"
    if file is not None and file.exists():
        return _read(file, corpus)
    started = time.perf_counter()
    _log.info("fitting the baseline on %s texts", f"{len(corpus.train):,}")
    vectorizer = TfidfVectorizer(preprocessor=_plain, ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32)
    try:
        trained = vectorizer.fit_transform(corpus.train.texts)
    except ValueError as error:
        raise DataError(f"{corpus.name}: no baseline can be fitted on its training texts: {error}") from error
    held_out = vectorizer.transform(corpus.validation.texts)
    # lbfgs fits any number of classes. At its default tolerance of 1e-4 it stops far from the optimum on such sparse
    # rows; 1e-6 takes twice the time and gives .0017 nats more on IMDB's held-out part.
    model = LogisticRegression(tol=1e-5, max_iter=300, warm_start=True)
    scores: dict[float, float] = {}
    best: tuple[float, NDArray[np.float32], NDArray[np.float32]] | None = None
    for strength in STRENGTHS:
        model.set_params(C=strength)
        # One BLAS thread: L-BFGS works on single vectors, where waiting threads cost ten times the work itself.
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # 300 steps from the last optimum: near enough for a bar
            model.fit(trained, corpus.train.labels)
        scores[strength] = nll(model.predict_proba(held_out), corpus.validation.labels)
        if best is None or scores[strength] < scores[best[0]]:
            best = (strength, model.coef_.copy(), model.intercept_.copy())
    assert best is not None
    strength, model.coef_, model.intercept_ = best
    record: dict[str, Any] = {
        "strength": strength,
        "validation_nll": {f"{c:g}": score for c, score in scores.items()},
        "seconds": time.perf_counter() - started,
    }
    found = {
        name: model.predict_proba(vectorizer.transform(rows)).astype(np.float64)
        for name, rows in {**texts, _CALIBRATION: corpus.calibration.texts}.items()
    }
    if file is not None:
        _write(record, found, file)
    return _calibrated(record, found, corpus)


def _calibrated(record: dict[str, Any], found: dict[str, NDArray[np.float64]], corpus: Corpus) -> Baseline:
    """The answers at the temperature that fits best, and the scores that prove its budgets."""
    labels = corpus.calibration.labels
    held_out = found.pop(_CALIBRATION)
    fit_rows, score_rows = fitting_and_scoring(labels)
    temperature = fit_temperature(np.log(np.clip(held_out[fit_rows], SMALLEST_PROBABILITY, 1.0)), labels[fit_rows])
    p = _at(held_out, temperature)
    total, right = entropy(p), correct(p, labels)
    calibration = Calibration(
        total=total[score_rows].tolist(),
        epistemic=[],
        true_probability=p[score_rows, labels[score_rows]].tolist(),
        correct=right[score_rows].tolist(),
        num_classes=p.shape[1],
        novelty_threshold=None,
        novelty_quantile=None,
        fitting_total=total[fit_rows].tolist(),
        fitting_correct=right[fit_rows].tolist(),
        temperature=temperature,
    )
    return Baseline({name: _at(p, temperature) for name, p in found.items()}, calibration, temperature, **record)


def _at(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities [rows, classes] with their logits divided by a temperature."""
    powers = np.clip(probabilities, SMALLEST_PROBABILITY, 1.0) ** (1 / temperature)
    scaled: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def _plain(text: str) -> str:
    return _MARKUP.sub(" ", text).lower()


def _key(corpus: Corpus, texts: Mapping[str, list[str]]) -> str:
    """Hash of everything that the answers depend on."""
    depends: dict[str, Any] = {
        "corpus": [corpus.provenance["sha256"][part] for part in ("train", "validation", "calibration")],
        "texts": {name: sha256_of_rows(rows, [""] * len(rows)) for name, rows in texts.items()},
        "strengths": STRENGTHS,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _write(record: dict[str, Any], found: Mapping[str, NDArray[np.float64]], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp.npz")
    np.savez(unfinished, record=np.array(json.dumps(record)), **found)
    unfinished.replace(file)


def _read(file: Path, corpus: Corpus) -> Baseline:
    with np.load(file, allow_pickle=False) as stored:
        record = json.loads(str(stored["record"]))
        found = {name: stored[name] for name in stored.files if name != "record"}
    return _calibrated(record, found, corpus)
