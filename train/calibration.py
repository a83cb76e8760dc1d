"""Calibration on rows that selected nothing else.

The calibration part is cut in two. Every fourth row of a class fits the posterior's few numbers and the novelty
quantile, and chooses where the test of an error budget begins; the others are only scored, and error budget and
prediction sets are proven on their scores. They travel with the checkpoint, so that `export add --max-error` can choose
another budget without the data.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from train.decision import (
    Decision,
    best_supported_threshold,
    clopper_pearson_upper,
    conformal_threshold,
    learn_then_test,
)
from train.errors import CalibrationError, CheckpointError
from train.evidence import EvidenceTables, OutOfFold
from train.model.bet import BetComponents, BetForSequenceClassification
from train.model.posterior import Posterior
from train.prediction import Ids, components_of, predict_ids
from train.stretches import crop

CALIBRATION_FILE = "calibration.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Scores of calibration rows under a model, from which any decision can be made; lists of N floats."""

    total: list[float]  # nats
    epistemic: list[float]  # nats; empty for a model that has none
    true_probability: list[float]
    correct: list[bool]
    num_classes: int
    novelty_threshold: float | None  # None for a model without epistemic uncertainty: nothing is unfamiliar to it
    novelty_quantile: float | None
    fitting_total: list[float]  # nats, of the rows that fitted the posterior; none of them is among the scores above
    fitting_correct: list[bool]
    temperature: float | None = None  # that a plain softmax was scored with

    def decide(self, max_error: float = 0.05, confidence: float = 0.95, conformal_level: float = 0.95) -> Decision:
        """Choose the thresholds for an error budget and a conformal level.

        Raises:
            CalibrationError: for a budget, confidence or level outside (0, 1).
        """
        if not 0 < conformal_level < 1:
            raise CalibrationError(f"conformal_level = {conformal_level} must lie between 0 and 1, for instance 0.95")
        total, correct = np.array(self.total), np.array(self.correct, dtype=bool)
        familiar = np.ones(len(total), dtype=bool)
        if self.novelty_threshold is not None:
            familiar = np.array(self.epistemic) <= self.novelty_threshold
        highest = math.log(self.num_classes)
        threshold, message = learn_then_test(
            total,
            correct,
            familiar,
            max_error=max_error,
            confidence=confidence,
            highest=highest,
            start=best_supported_threshold(
                np.array(self.fitting_total),
                np.array(self.fitting_correct, dtype=bool),
                max_error=max_error,
                highest=highest,
            ),
        )
        notes = [message] if message else []
        conformal = conformal_threshold(1 - np.array(self.true_probability, np.float64), conformal_level)
        if conformal >= 1:
            least = math.ceil(round(conformal_level / (1 - conformal_level), 9))
            notes.append(
                f"{len(total)} calibration rows give only full prediction sets at {conformal_level:.0%}: {least} needed"
            )
        accepted = familiar & (total <= threshold)
        rows, errors = int(accepted.sum()), int((accepted & ~correct).sum())
        return Decision(
            max_error=max_error,
            confidence=confidence,
            risk_threshold=threshold,
            novelty_threshold=self.novelty_threshold,
            novelty_quantile=self.novelty_quantile,
            conformal_level=conformal_level,
            conformal_threshold=conformal,
            rows=len(total),
            accepted_share=rows / len(total),
            accepted_error=errors / rows if rows else 0.0,
            accepted_error_bound=float(clopper_pearson_upper(errors, rows, confidence)),
            message="; ".join(notes),
            temperature=self.temperature,
        )

    def save(self, folder: Path) -> None:
        """Write `calibration.json`."""
        (folder / CALIBRATION_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Calibration:
        """Read `calibration.json`.

        Raises:
            CheckpointError: if it is missing or not of this form.
        """
        path = folder / CALIBRATION_FILE
        try:
            return Calibration(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is not a calibration of this version: {error}; calibrate again") from error


def calibrate(
    model: BetForSequenceClassification,
    documents: list[Ids],
    labels: npt.NDArray[np.int64],
    *,
    crop_weight: float,
    novelty_quantile: float,
    seed: int,
) -> Calibration:
    """Fit the model's posterior in place on a quarter of the rows and score the others.

    Args:
        model: its trunk and evidence stay as they are.
        documents: token ids of N texts that neither trained nor selected anything.
        labels: [N] int64.
        crop_weight: weight of a crop of each fitting row, so that short texts are calibrated too.
        novelty_quantile: of the fitting rows' epistemic uncertainty, above which a text is unfamiliar.
        seed: of the crops.

    Raises:
        CalibrationError: if a class is missing from either.
    """
    fit_rows, score_rows = fitting_and_scoring(labels)
    every_class(labels[fit_rows], labels[score_rows], model.config.label_names)
    random = np.random.default_rng(seed)
    fitting = [documents[i] for i in fit_rows]
    target = torch.from_numpy(labels[fit_rows])
    fit_posterior(
        model.posterior,
        [
            (1.0, components_of(model, fitting), target),
            (crop_weight, components_of(model, [crop(d, random) for d in fitting]), target),
        ],
        around=Around(evidence_scale=0.08, trunk_scale=0.04, bias=_TO_PRIOR, variance=0.008),
        prior=model.evidence.bias,
    )
    fitted = predict_ids(model, fitting)
    return score(
        model,
        [documents[i] for i in score_rows],
        labels[score_rows],
        novelty_threshold=float(np.quantile(fitted["epistemic"], novelty_quantile)),
        novelty_quantile=novelty_quantile,
        fitting_total=fitted["total"].tolist(),
        fitting_correct=(fitted["probabilities"].argmax(1) == labels[fit_rows]).tolist(),
    )


def score(
    model: BetForSequenceClassification,
    documents: list[Ids],
    labels: npt.NDArray[np.int64],
    *,
    novelty_threshold: float | None,
    novelty_quantile: float | None,
    fitting_total: Sequence[float] = (),
    fitting_correct: Sequence[bool] = (),
) -> Calibration:
    """Score N labelled texts under a calibrated model; `export add --calibration` does this with a user's own rows.

    The other arguments are those of the `Calibration` that the model came with, or of fresh ones.

    Raises:
        CalibrationError: if a class is missing, since nothing could be said about it.
    """
    every_class(labels, labels, model.config.label_names)
    answer = predict_ids(model, documents)
    p = answer["probabilities"]
    return Calibration(
        total=answer["total"].tolist(),
        epistemic=answer["epistemic"].tolist(),
        true_probability=p[np.arange(len(labels)), labels].tolist(),
        correct=(p.argmax(1) == labels).tolist(),
        num_classes=int(p.shape[1]),
        novelty_threshold=novelty_threshold,
        novelty_quantile=novelty_quantile,
        fitting_total=list(fitting_total),
        fitting_correct=list(fitting_correct),
    )


def start_posterior(
    posterior: Posterior, tables: EvidenceTables, labels: npt.NDArray[np.int64], *, crop_weight: float
) -> None:
    """Fit what the evidence alone determines, on the out-of-fold scores of the whole training part.

    They are honest and there are many of them, so scale and variances are known well before the trunk exists; a few
    hundred calibration rows then only have to say how far to trust the trunk. Without this start the scale came out
    as e^0.05 or e^0.60 depending on which half of the calibration part was used, and ECE with it.
    """
    target = torch.from_numpy(labels)
    no_trunk = torch.zeros(len(labels), 1, posterior.bias.shape[0])

    def part(scores: OutOfFold) -> BetComponents:
        return BetComponents(torch.from_numpy(scores.evidence), torch.from_numpy(scores.novelty), no_trunk)

    fit_posterior(
        posterior,
        [(1.0, part(tables.whole), target), (crop_weight, part(tables.crops), target)],
        around=Around(evidence_scale=0.0, trunk_scale=0.0, bias=_TO_PRIOR, variance=0.001),
        prior=torch.from_numpy(tables.bias),
    )


@dataclass(frozen=True)
class Around:
    """Weights of the squared distance from the present values: normal priors, in nats a row."""

    evidence_scale: float
    trunk_scale: float
    bias: float
    variance: float


_TO_PRIOR = 1.0  # nats a row
LOOSE = Around(evidence_scale=0.001, trunk_scale=0.001, bias=0.001, variance=0.001)


def fit_posterior(
    posterior: Posterior,
    parts: list[tuple[float, BetComponents, torch.Tensor]],
    *,
    around: Around,
    prior: torch.Tensor | None = None,
) -> None:
    """Fit the posterior's numbers by L-BFGS on the negative log-likelihood of parts (weight, components, label).

    Its present values are the centre of normal priors, without which a few hundred rows of neighbouring texts move the
    scale more than they know about it.

    Args:
        posterior: fitted in place.
        parts: weight; components of N texts; labels [N] int64.
        around: how firmly the numbers stay.
        prior: [L], logits of the classes' shares. What a text without evidence gets, the scaled prior and the bias,
            stays near it: whole documents, whose few strong words speak for one class more than for another, would
            bend the bias to themselves and take every short text along. None: the bias stays near its present value.
    """
    # In float64: near the optimum a line search in float32 sees rounding alone, and its step grew without bound.
    fitted = copy.deepcopy(posterior).double().requires_grad_(True)
    rows = [(weight, BetComponents(*(x.double() for x in components)), label) for weight, components, label in parts]
    centre = {name: value.detach().clone() for name, value in fitted.named_parameters()}
    optimizer = torch.optim.LBFGS(list(fitted.parameters()), lr=0.5, max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = around.evidence_scale * (fitted.log_evidence_scale - centre["log_evidence_scale"]) ** 2
        loss = loss + around.trunk_scale * (fitted.log_trunk_scale - centre["log_trunk_scale"]) ** 2
        if prior is None:
            moved = fitted.bias - centre["bias"]
        else:
            moved = fitted.log_evidence_scale.exp() * prior + fitted.bias - prior
        loss = loss + around.bias * (moved**2).sum()
        loss = loss + around.variance * ((fitted.log_variance - centre["log_variance"]) ** 2).sum()
        for weight, components, label in rows:
            p = fitted(*components).probabilities
            loss = loss - weight * p.gather(1, label[:, None]).log().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    posterior.load_state_dict(fitted.state_dict())
    _log.info("posterior: %s", {k: np.round(v.detach().numpy(), 3).tolist() for k, v in posterior.named_parameters()})


def fitting_and_scoring(labels: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
    """Indices of the rows that fit (every fourth of a class) and of those that are only scored.

    Alternating, both see every source, of which neighbouring rows often are; contiguous halves gave a fit .0012 nats
    worse on 12 splits. A quarter is enough for a fit that starts where the training part left it, and the error budget
    needs the rows: with half of them, 18 errors stood among the accepted of one half and 29 among those of the other.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fit = np.concatenate([m[0::4] for m in members])
    return fit, np.setdiff1d(np.arange(len(labels)), fit)


def every_class(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Require every class among the labels of both kinds of rows.

    Raises:
        CalibrationError: naming the classes that are missing, with the rows that they have.
    """
    missing = sorted(set(range(len(names))) - (set(first.tolist()) & set(second.tolist())))
    if missing:
        rows = first if second is first else np.concatenate([first, second])
        raise CalibrationError(
            "the calibration rows hold too few texts labelled "
            + ", ".join(f"{names[c]!r} ({(rows == c).sum()} of {len(rows)} rows)" for c in missing)
            + ": nothing could be said about that class; add labelled rows of it"
        )
