"""Calibration on rows that selected nothing else.

The calibration part is cut in two, by contiguous blocks per class. The first half fits the posterior's few numbers and
the novelty quantile; the second half is only scored, and error budget and prediction sets are proven on its scores. They
travel with the checkpoint, so that `export add --max-error` can choose another budget without the data.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from train.decision import Decision, clopper_pearson_upper, conformal_threshold, learn_then_test
from train.errors import CalibrationError, CheckpointError
from train.evidence import crop
from train.model.bet import BetComponents, BetForSequenceClassification
from train.prediction import Ids, components_of, predict_ids

CALIBRATION_FILE = "calibration.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Scores of calibration rows under a model, from which any decision can be made; lists of N floats."""

    total: list[float]  # nats
    epistemic: list[float]  # nats
    true_probability: list[float]
    correct: list[bool]
    num_classes: int
    novelty_threshold: float
    novelty_quantile: float
    fitted_rows: int  # rows that fitted the posterior; none of them is among the scores

    def decide(self, max_error: float = 0.05, confidence: float = 0.95, conformal_level: float = 0.95) -> Decision:
        """Choose the thresholds for an error budget and a conformal level.

        Raises:
            CalibrationError: for a budget, confidence or level outside (0, 1).
        """
        if not 0 < conformal_level < 1:
            raise CalibrationError(f"conformal_level = {conformal_level} must lie between 0 and 1, for instance 0.95")
        total, correct = np.array(self.total), np.array(self.correct, dtype=bool)
        familiar = np.array(self.epistemic) <= self.novelty_threshold
        threshold, message = learn_then_test(
            total,
            correct,
            familiar,
            max_error=max_error,
            confidence=confidence,
            highest=math.log(self.num_classes),
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
            accepted_error_bound=clopper_pearson_upper(errors, rows, confidence),
            message="; ".join(notes),
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
    """Fit the model's posterior in place on the first half of the rows and score the second half.

    Args:
        model: its trunk and evidence stay as they are.
        documents: token ids of N texts that neither trained nor selected anything.
        labels: [N] int64.
        crop_weight: weight of a random crop of each fitting row, so that short texts are calibrated too.
        novelty_quantile: of the fitting rows' epistemic uncertainty, above which a text is unfamiliar.
        seed: of the crops.

    Raises:
        CalibrationError: if a class is missing from either half.
    """
    fit_rows, score_rows = _halves(labels)
    _every_class(labels[fit_rows], labels[score_rows], model.config.label_names)
    random = np.random.default_rng(seed)
    fitting = [documents[i] for i in fit_rows]
    target = torch.from_numpy(labels[fit_rows])
    fit_posterior(
        model,
        [
            (1.0, components_of(model, fitting), target),
            (crop_weight, components_of(model, [crop(d, random) for d in fitting]), target),
        ],
    )
    novelty = float(np.quantile(predict_ids(model, fitting)["epistemic"], novelty_quantile))
    return score(
        model,
        [documents[i] for i in score_rows],
        labels[score_rows],
        novelty_threshold=novelty,
        novelty_quantile=novelty_quantile,
        fitted_rows=len(fit_rows),
    )


def score(
    model: BetForSequenceClassification,
    documents: list[Ids],
    labels: npt.NDArray[np.int64],
    *,
    novelty_threshold: float,
    novelty_quantile: float,
    fitted_rows: int = 0,
) -> Calibration:
    """Score N labelled texts under a calibrated model; `export add --calibration` does this with a user's own rows.

    Raises:
        CalibrationError: if a class is missing, since nothing could be said about it.
    """
    _every_class(labels, labels, model.config.label_names)
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
        fitted_rows=fitted_rows,
    )


def fit_posterior(model: BetForSequenceClassification, parts: list[tuple[float, BetComponents, torch.Tensor]]) -> None:
    """Fit the posterior's numbers by L-BFGS on the negative log-likelihood of parts (weight, components, label).

    A weak normal prior keeps the log variances from running away where novelty hardly varies.
    """
    posterior = model.posterior
    posterior.requires_grad_(True)
    optimizer = torch.optim.LBFGS(list(posterior.parameters()), lr=0.5, max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 1e-3 * ((posterior.log_variance + 4) ** 2).sum()
        for weight, components, label in parts:
            p = posterior(*components).probabilities
            loss = loss - weight * p.gather(1, label[:, None]).log().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    posterior.requires_grad_(False)
    posterior.zero_grad(set_to_none=True)
    _log.info("posterior: %s", {k: np.round(v.numpy(), 3).tolist() for k, v in posterior.named_parameters()})


def _halves(labels: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
    """First and second half of every class, as indices; contiguous, since neighbouring rows may share a source."""
    first, second = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        cut = len(members) // 2
        first.append(members[:cut])
        second.append(members[cut:])
    return np.concatenate(first), np.concatenate(second)


def _every_class(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], names: tuple[str, ...]) -> None:
    missing = sorted(set(range(len(names))) - (set(first.tolist()) & set(second.tolist())))
    if missing:
        raise CalibrationError(
            "the calibration rows hold too few texts labelled "
            + ", ".join(repr(names[c]) for c in missing)
            + f" ({len(second)} rows in all): nothing could be said about that class; add labelled rows of it"
        )
