"""`python -m train spread`: every way to a spread on the same evidence, posterior and rows, with its cost.

The posterior of each way is fitted on validation and calibration rows and crops of them; the held-out part, snippets of
another domain and text that is nothing like the corpus are then read once. Some kinds of unfamiliar text chose the form
of novelty (ADR 14), so kinds that chose nothing stand beside them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train import metrics
from train.calibration import LOOSE, fit_posterior
from train.checkpoint import Checkpoint, load_production
from train.data import Corpus, reload_corpus, snippets_beside
from train.errors import CheckpointError
from train.evaluation import BUDGETS
from train.features import load_evidence
from train.metrics import Bools
from train.model.bet import BetForSequenceClassification
from train.model.posterior import Posterior, Predictive
from train.model.streams import Encoder
from train.prediction import Ids, components_of
from train.preset import TrainingOptions
from train.pretraining import load_encoder
from train.spread.cost import Answering, milliseconds
from train.spread.members import BatchEnsemble, Distilled
from train.spread.methods import Constant, DeepEnsemble, GaussianProcess, Laplace, Mahalanobis, MonteCarloDropout
from train.spread.plain import PlainTransformer
from train.stretches import crop
from train.tokenizer import encode
from train.training import Labelled, TrainingTexts
from train.unfamiliar import further_texts, unfamiliar_texts
from verdict import Report

COMMAND = "spread"
DEFAULT, PLAIN, ENSEMBLE = "novelty", "plain transformer", "deep ensemble"
LENGTHS = (20, 300)  # tokens of the texts whose cost is measured
COST_TARGETS = {"20_tokens": "<= 2.5", "300_tokens": "<= 1.1"}
_CROP_WEIGHT = 0.5
_SAMPLES = 8
_MEMBERS = 4
_WHOLE = 1 << 20  # a window that no text exceeds
_log = logging.getLogger(__name__)


@dataclass
class Texts:
    """All rows of the study as token ids."""

    fit: list[Ids]
    fit_crops: list[Ids]
    fit_labels: torch.Tensor
    test: list[Ids]
    test_labels: metrics.Labels
    shift: dict[str, tuple[list[Ids], metrics.Labels]]
    chose: dict[str, list[Ids]]  # unfamiliar kinds that chose the form of novelty
    fresh: dict[str, list[Ids]]  # and those that chose nothing


@dataclass
class Result:
    """What a way gives on N held-out rows."""

    posterior: Posterior
    total: metrics.Floats  # [N] nats
    right: Bools  # [N]
    losses: metrics.Floats  # [N] nats
    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the difference to the default, paired


def compare_spreads(checkpoints: Sequence[Path], *, cache_dir: Path | None = None) -> Report:
    """Compare every way to a spread for a checkpoint.

    Args:
        checkpoints: production folders in their runs, whose evidence is needed; the first is compared, the others are
            the same run with other seeds, its ensemble.
        cache_dir: cache of Hugging Face `datasets`.

    Raises:
        CheckpointError: if one is not whole, or they are not the same run with other seeds.
        DataError: if the corpus has changed or is not to be had.
    """
    loaded = [load_production(path) for path in checkpoints]
    first = loaded[0]
    for path, other in zip(checkpoints, loaded, strict=True):
        for key in ("data", "preset"):
            if other.provenance[key] != first.provenance[key]:
                raise CheckpointError(
                    f"{path} was trained with another {key} than {checkpoints[0]}: an ensemble is the same run with "
                    "other seeds; train it again"
                )
    corpus = reload_corpus(first.provenance["data"], cache_dir)
    texts, training = _texts(first, corpus, cache_dir), _training_texts(checkpoints[0], first, corpus)
    run = checkpoints[0].resolve().parent
    ways = _ways([one.model for one in loaded], training, _options(first.provenance), run)
    results = {name: _measured(name, way, texts) for name, way in ways.items()}
    for name, result in results.items():
        result.intervals = _differences(result, results[DEFAULT]) if name != DEFAULT else {}
    exported = {
        name: Answering(way, results[name].posterior)
        for name, way in ways.items()
        if not isinstance(way, MonteCarloDropout)  # no random number may stand in a served graph
    }
    document = max(texts.test, key=len)
    costs = milliseconds(exported, {f"{n}_tokens": document[:n] for n in LENGTHS})
    for name, cost in costs.items():
        results[name].figures |= {f"ms_{length}": value for length, value in cost.items()}
    sizes = {name: _size(ways[name]) for name in (DEFAULT, PLAIN) if name in ways}
    return _report(checkpoints, results, sizes)


def _options(provenance: Mapping[str, Any]) -> TrainingOptions:
    return TrainingOptions(**provenance["preset"]["training"])


def _ways(
    members: list[BetForSequenceClassification], training: TrainingTexts, options: TrainingOptions, run: Path
) -> dict[str, nn.Module]:
    """Every way, trained where it needs training; the default first."""
    base = members[0]
    whole = TrainingTexts(
        Labelled(training.documents, training.labels), training.held_out, window=_WHOLE, seed=training.seed
    )
    ways: dict[str, nn.Module] = {
        DEFAULT: base,
        "constant": Constant(base),
        "MC dropout": MonteCarloDropout(base, _SAMPLES),
        "Laplace": Laplace(base, whole),
        "Mahalanobis": Mahalanobis(base, whole),
        "Gaussian process head": GaussianProcess(base, whole),
    }
    if len(members) > 1:
        ways[ENSEMBLE] = DeepEnsemble(members)
        distilled = Distilled(base, whole)
        distilled.fit(members, training, options, seed=training.seed)
        ways["distilled ensemble"] = distilled
    batch_ensemble = BatchEnsemble(_untrained_streams(base, run), _MEMBERS)
    batch_ensemble.fit(training, options, seed=training.seed)
    ways["BatchEnsemble"] = batch_ensemble
    if isinstance(base.trunk.encoder, Encoder):
        plain = PlainTransformer.of_the_size_of(base)
        plain.fit(training, options, seed=training.seed)
        ways[PLAIN] = plain
    return ways


def _untrained_streams(base: BetForSequenceClassification, run: Path) -> BetForSequenceClassification:
    """The model as training on labels finds it: evidence, pretrained encoder, and streams that know nothing."""
    fresh = BetForSequenceClassification(base.config)
    fresh.evidence.load_state_dict(base.evidence.state_dict())
    if isinstance(fresh.trunk.encoder, Encoder):
        load_encoder(fresh.trunk.encoder, run)
    else:
        fresh.trunk.encoder.load_state_dict(base.trunk.encoder.state_dict())
    return fresh


def _size(way: nn.Module) -> int:
    """Weights beside word vectors and the tables of n-grams."""
    tables = {id(module.weight) for module in way.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() for weight in way.parameters() if id(weight) not in tables)


def _texts(first: Checkpoint, corpus: Corpus, cache_dir: Path | None) -> Texts:
    config = first.model.config

    def ids(texts: list[str]) -> list[Ids]:
        return encode(first.tokenizer, texts, config.max_tokens, config.head_tokens)

    random = np.random.default_rng(0)
    fit = ids(corpus.validation.texts) + ids(corpus.calibration.texts)
    words = np.array([len(text.split()) for text in corpus.test.texts])
    shift = {}
    snippets = snippets_beside(corpus, cache_dir)
    if snippets is not None:
        shift["snippets"] = (ids(snippets.texts), snippets.labels)
    return Texts(
        fit=fit,
        fit_crops=[crop(document, random) for document in fit],
        fit_labels=torch.from_numpy(np.concatenate([corpus.validation.labels, corpus.calibration.labels])),
        test=ids(corpus.test.texts),
        test_labels=corpus.test.labels,
        shift=shift,
        chose={name: ids(texts) for name, texts in unfamiliar_texts(corpus.train.texts, words).items()},
        fresh={name: ids(texts) for name, texts in further_texts(corpus.train.texts, words).items()},
    )


def _training_texts(checkpoint: Path, first: Checkpoint, corpus: Corpus) -> TrainingTexts:
    config = first.model.config
    documents = encode(first.tokenizer, corpus.train.texts, config.max_tokens, config.head_tokens)
    options = _options(first.provenance)
    held_out = load_evidence(checkpoint.resolve().parent).held_out
    labelled = Labelled(documents, corpus.train.labels)
    unknown = first.model.config.unk_token_id
    return TrainingTexts.of(labelled, held_out, options, unknown=unknown, seed=first.provenance["seed"])


def _measured(name: str, way: Any, texts: Texts) -> Result:
    """Fit a way's posterior and read everything once."""
    started = time.perf_counter()
    config = way.config
    parts = [
        (weight, components_of(way, documents), texts.fit_labels)
        for weight, documents in ((1.0, texts.fit), (_CROP_WEIGHT, texts.fit_crops))
    ]
    posterior = Posterior(config.logit_columns, config.noise_nodes)
    fit_posterior(posterior, parts, around=LOOSE)

    @torch.no_grad()
    def read(documents: list[Ids]) -> Predictive:
        found: Predictive = posterior(*components_of(way, documents))
        return found

    test = read(texts.test)
    p, total, epistemic = test.probabilities.numpy(), test.total.numpy(), test.epistemic.numpy()
    right = metrics.correct(p, texts.test_labels)
    result = Result(posterior, total, right, metrics.log_losses(p, texts.test_labels))
    figures = result.figures
    figures["accuracy"], figures["nll"] = float(right.mean()), float(result.losses.mean())
    figures["ece"] = metrics.ece(p, texts.test_labels)
    for budget, share in BUDGETS.items():
        figures[f"acceptable_at_{budget}"] = metrics.share_accepted_at(total, right, share)
    figures["error_auroc"] = metrics.told_apart(total[right], total[~right])
    for kind, (documents, labels) in texts.shift.items():
        answer = read(documents).probabilities.numpy()
        figures[f"{kind}_accuracy"], figures[f"{kind}_nll"] = (
            metrics.accuracy(answer, labels),
            metrics.nll(answer, labels),
        )
    for group, kinds in (("chose", texts.chose), ("fresh", texts.fresh)):
        found = {
            kind: metrics.told_apart(epistemic, read(documents).epistemic.numpy()) for kind, documents in kinds.items()
        }
        figures.update({f"unfamiliar_auroc_{kind}": value for kind, value in found.items()})
        figures[f"unfamiliar_auroc_{group}"] = float(np.mean(list(found.values()))) if found else math.nan
    _log.info("%s: %.0f s, nll %.4f", name, time.perf_counter() - started, figures["nll"])
    return result


def _differences(result: Result, default: Result) -> dict[str, tuple[float, float]]:
    """95 % intervals of the default's figure minus the way's, on the same rows drawn with replacement."""
    rows = len(result.right)
    found = {"nll": metrics.bootstrap(lambda i: float((default.losses[i] - result.losses[i]).mean()), rows)}
    for name, budget in BUDGETS.items():

        def difference(i: metrics.Labels, budget: float = budget) -> float:
            ours = metrics.share_accepted_at(default.total[i], default.right[i], budget)
            return ours - metrics.share_accepted_at(result.total[i], result.right[i], budget)

        found[f"acceptable_at_{name}"] = metrics.bootstrap(difference, rows)
    return found


def _report(checkpoints: Sequence[Path], results: Mapping[str, Result], sizes: Mapping[str, int]) -> Report:
    report = Report(COMMAND)
    default = results[DEFAULT].figures
    for name, result in results.items():
        for figure, value in result.figures.items():
            report.add(f"{figure}_{name.replace(' ', '_')}", value)
    plain, ensemble = (results[name].figures if name in results else None for name in (PLAIN, ENSEMBLE))
    if plain is not None:
        for length, target in COST_TARGETS.items():
            ratio = default[f"ms_{length}"] / plain[f"ms_{length}"]
            report.add(f"cost_against_plain_{length}", ratio, "times", target)
    if plain is not None and ensemble is not None:
        for budget in BUDGETS:
            key = f"acceptable_at_{budget}"
            way = ensemble[key] - plain[key]
            gone = (default[key] - plain[key]) / way if way > 0 else math.nan
            report.add(f"way_to_ensemble_{budget}", gone, "share", ">= 0.8")
    report.details |= {
        "checkpoints": [str(path) for path in checkpoints],
        "weights": dict(sizes),
        "ways": {name: {"figures": r.figures, "default_minus_way": r.intervals} for name, r in results.items()},
    }
    _log.info("%s", table(results))
    return report


def table(results: Mapping[str, Result]) -> str:
    """The ways for a reader: figures of the held-out part, unfamiliar text, and milliseconds an answer."""
    shown = ("accuracy", "nll", "acceptable_at_5pct", "acceptable_at_1pct", "error_auroc", "snippets_nll",
             "unfamiliar_auroc_chose", "unfamiliar_auroc_fresh", *(f"ms_{n}_tokens" for n in LENGTHS))  # fmt: skip
    head = (
        "accuracy",
        "nll",
        "5 %",
        "1 %",
        "errors",
        "snippets",
        "unfamiliar",
        "fresh",
        *(f"{n} tok" for n in LENGTHS),
    )
    lines = [f"{'':<22}" + "".join(f"{title:>11}" for title in head)]
    for name, result in results.items():
        cells = (f"{result.figures[key]:.4f}" if key in result.figures else "–" for key in shown)
        lines.append(f"{name:<22}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
