"""What each component is worth: the same checkpoint with one of them switched off, on rows that trained nothing.

The posterior is fitted anew for every variant, on the validation rows for the calibration rows and the other way round,
so that a variant is scored at its best and on rows that did not fit it. The held-out part is not read. What a component
would be worth if the others had been trained without it takes a training run with another preset.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train import metrics
from train.calibration import LOOSE, fit_posterior
from train.checkpoint import load_production
from train.data import reload_corpus
from train.model.bet import BetComponents, BetForSequenceClassification
from train.model.debiasing import Harmonics, PositionalDebiasing, mean_profile
from train.model.loss import MDLRegularizedLoss
from train.model.position import position_features
from train.model.posterior import Posterior, Predictive
from train.model.segments import Segments, segment
from train.prediction import Ids, components_of, pack, token_batches
from train.stretches import crop
from train.tokenizer import encode
from train.unfamiliar import unfamiliar_texts
from verdict import Report

COMMAND = "ablate"
_CROP_WEIGHT = 0.5
_OFF = -30.0  # of a logarithmic scale
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """How a variant fares; nats, shares, areas under the curve."""

    accuracy: float
    nll: float
    nll_crops: float
    description_length: float  # nats a label under the Dirichlet, `train.model.loss`
    error_auroc: float  # of `total`
    unfamiliar_auroc: float  # of `epistemic`, mean over the kinds of `train.unfamiliar`


Variant = Callable[[BetComponents], BetComponents]


def ablate(checkpoint: Path, *, cache_dir: Path | None = None) -> Report:
    """Measure a production checkpoint with each component switched off in turn.

    Raises:
        CheckpointError: if the checkpoint is not whole.
        DataError: if its corpus has changed or is not to be had.
    """
    loaded = load_production(checkpoint)
    model, config = loaded.model, loaded.model.config
    corpus = reload_corpus(loaded.provenance["data"], cache_dir)

    def ids(texts: list[str]) -> list[Ids]:
        return encode(loaded.tokenizer, texts, config.max_tokens, config.head_tokens)

    random = np.random.default_rng(0)
    halves = [(ids(part.texts), torch.from_numpy(part.labels)) for part in (corpus.validation, corpus.calibration)]
    crops = [[crop(document, random) for document in documents] for documents, _ in halves]
    lengths = np.array([len(text.split()) for text in corpus.validation.texts])
    foreign = [ids(texts) for texts in unfamiliar_texts(corpus.train.texts, lengths).values()]
    harmonics, debiasing = _harmonics(model, halves[0][0])

    everything = _Read(model, halves, crops, foreign)

    def measured(read: _Read, change: Variant = lambda found: found) -> Row:
        return _cross_fitted(config.logit_columns, read.changed(change), nodes=config.noise_nodes)

    rows = {
        "everything": measured(everything),
        "evidence alone": measured(everything, lambda c: c._replace(trunk=torch.zeros_like(c.trunk[:, :1]))),
        "both streams alone": measured(everything, lambda c: c._replace(evidence=torch.zeros_like(c.evidence))),
        "without the words stream": measured(_Read(_without(model, 1), halves, crops, foreign)),
        "without the evidence stream": measured(_Read(_without(model, 2), halves, crops, foreign)),
        "one order of the segments": measured(everything, lambda c: c._replace(trunk=c.trunk[:, :1])),
        "without novelty": measured(everything, lambda c: c._replace(novelty=torch.zeros_like(c.novelty))),
        "harmonics removed": measured(_Read(_debiased(model, debiasing), halves, crops, foreign)),
    }
    report = Report(COMMAND)
    for name, row in rows.items():
        for field, value in asdict(row).items():
            report.add(f"{field}_{name.replace(' ', '_')}", value)
    report.details |= {
        "checkpoint": str(checkpoint),
        "rows": sum(len(documents) for documents, _ in halves),
        "variants": {name: asdict(row) for name, row in rows.items()},
        "harmonics": harmonics._asdict(),
    }
    _log.info("%s", table(rows, harmonics))
    return report


class _Read:
    """What a model's parts say of all rows: evidence, novelty and trunk, before a posterior joins them."""

    def __init__(
        self,
        model: BetForSequenceClassification,
        halves: list[tuple[list[Ids], Tensor]],
        crops: list[list[Ids]],
        foreign: list[list[Ids]],
    ) -> None:
        self.labels = [labels for _, labels in halves]
        self.halves = [components_of(model, documents) for documents, _ in halves]
        self.crops = [components_of(model, documents) for documents in crops]
        self.foreign = [components_of(model, documents) for documents in foreign]

    def changed(self, change: Variant) -> _Read:
        """The same with one part switched off."""
        other = copy.copy(self)
        for name in ("halves", "crops", "foreign"):
            setattr(other, name, [change(found) for found in getattr(self, name)])
        return other


def table(rows: dict[str, Row], harmonics: Harmonics) -> str:
    """The variants for a reader."""
    lines = [f"{'':<28} accuracy     nll   crops  length  errors  unfamiliar"]
    lines += [
        f"{name:<28}   {r.accuracy:.4f}  {r.nll:.4f}  {r.nll_crops:.4f}  {r.description_length:.4f}   "
        f"{r.error_auroc:.3f}       {r.unfamiliar_auroc:.3f}"
        for name, r in rows.items()
    ]
    found = "removed" if harmonics.removed else "left alone"
    lines.append(
        f"harmonics of 64 tokens in the hidden states: {harmonics.share:.1%} of what constant and trend leave, "
        f"p = {harmonics.p_value:.2g}, {found}"
    )
    return "\n".join(lines)


def _cross_fitted(columns: int, read: _Read, *, nodes: int) -> Row:
    answers: list[Predictive] = []
    of_crops: list[Predictive] = []
    strange: list[list[Predictive]] = []
    for fit, score in ((0, 1), (1, 0)):
        posterior = Posterior(columns, nodes)
        target = read.labels[fit]
        parts = [(1.0, read.halves[fit], target), (_CROP_WEIGHT, read.crops[fit], target)]
        fit_posterior(posterior, parts, around=LOOSE)
        with torch.no_grad():
            answers.append(posterior(*read.halves[score]))
            of_crops.append(posterior(*read.crops[score]))
            strange.append([posterior(*found) for found in read.foreign])
    labels = torch.cat([read.labels[1], read.labels[0]])
    p = torch.cat([a.probabilities for a in answers]).numpy()
    right, total = metrics.correct(p, labels.numpy()), torch.cat([a.total for a in answers]).numpy()
    concentration = torch.cat([a.concentration for a in answers])[:, None]
    # Both posteriors see every foreign text; each is compared with the rows that it answers itself.
    aurocs = [
        metrics.told_apart(own.epistemic.numpy(), other.epistemic.numpy())
        for own, others in zip(answers, strange, strict=True)
        for other in others
    ]
    return Row(
        accuracy=float(right.mean()),
        nll=metrics.nll(p, labels.numpy()),
        nll_crops=metrics.nll(torch.cat([c.probabilities for c in of_crops]).numpy(), labels.numpy()),
        description_length=MDLRegularizedLoss()(concentration, labels)[0].item(),
        error_auroc=metrics.told_apart(total[right], total[~right]),
        unfamiliar_auroc=float(np.mean(aurocs)),
    )


def _without(model: BetForSequenceClassification, scale: int) -> BetForSequenceClassification:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.log_scales[scale] = _OFF
    return other


class _Debiased(torch.nn.Module):
    """An encoder whose hidden states lose the harmonics that were found in them."""

    def __init__(self, encoder: torch.nn.Module, debiasing: PositionalDebiasing) -> None:
        super().__init__()
        self.encoder, self.debiasing = encoder, debiasing

    def forward(self, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
        hidden: Tensor = self.debiasing(self.encoder(ids, position, segments), segments.offset.flatten())
        return hidden


def _debiased(model: BetForSequenceClassification, debiasing: PositionalDebiasing) -> BetForSequenceClassification:
    other = copy.deepcopy(model)
    other.trunk.encoder = _Debiased(other.trunk.encoder, debiasing)  # type: ignore[assignment]
    return other


@torch.no_grad()
def _harmonics(model: BetForSequenceClassification, documents: list[Ids]) -> tuple[Harmonics, PositionalDebiasing]:
    """What of the encoder's mean profile over position is 64-periodic, and what removes it."""
    width, length = model.config.hidden_size, model.config.max_tokens
    total, counts = torch.zeros(length, width), torch.zeros(length)
    for batch in token_batches(documents, 16_384):
        ids, lengths = pack([documents[i] for i in batch])
        tokens = model.read_tokens(ids, lengths)
        segments = segment(tokens, lengths, model.config.segment_length)
        position = position_features(segments.offset, tokens.lengths[segments.row][:, None])
        hidden = model.trunk.encoder(segments.ids, position, segments)
        mean, counted = mean_profile(hidden, segments.offset.flatten(), segments.mask.flatten(), length)
        total, counts = total + mean * counted[:, None], counts + counted
    seen = int((counts >= counts.max() / 20).sum())  # far positions are those of few texts
    debiasing = PositionalDebiasing(width)
    profile = total[:seen] / counts[:seen, None].clamp(min=1)
    return debiasing.fit(profile, counts[:seen]), debiasing
