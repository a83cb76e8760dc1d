"""Train the streams on labels, on packed batches, each text with evidence from a member that never saw it.

Each epoch shows a fresh stretch of every text, a window or, for a share of them, its end alone; the model reads it as a
text of its own, with the evidence that it would have. A stretch regularises and halves the cost of long texts, and a
short ending teaches what short texts need.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.checkpoint import verify, written_whole
from train.errors import CheckpointError, TrainError
from train.evidence import HeldOut
from train.model.bet import BetForSequenceClassification
from train.prediction import Ids, pack
from train.preset import TrainingOptions
from train.stretches import crop_start, short_length
from train.temperature import fit_temperature
from train.tokenizer import UNK_ID
from train.trainer import AtomicTrainer, optimizer_of, trainer_arguments

ROLLING, MILESTONES = "rolling", "milestones"
_EVALUATION_ROWS = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled(Dataset[dict[str, Any]]):
    """Whole texts as token ids, with labels [N]."""

    documents: list[Ids]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"document": self.documents[row], "label": int(self.labels[row])}


class Stretches(Dataset[dict[str, Any]]):
    """Stretches of texts that depend on seed, epoch and row only; the base of both phases' data."""

    def __init__(self, documents: list[Ids], window: int, crop_share: float, seed: int) -> None:
        self.documents, self.window, self.crop_share, self.seed, self.epoch = documents, window, crop_share, seed, 0

    def __len__(self) -> int:
        return len(self.documents)

    def bounds(self, row: int) -> tuple[int, int]:
        """Where this epoch's stretch of a text begins and ends."""
        length = len(self.documents[row])
        random = np.random.default_rng((self.seed, self.epoch, row))
        if self.crop_share and random.random() < self.crop_share:
            return crop_start(length, random), length
        start = int(random.integers(0, length - self.window + 1)) if length > self.window else 0
        return start, min(start + self.window, length)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = self.bounds(row)
        return {"document": self.documents[row][start:end]}


class TrainingTexts(Stretches):
    """Stretches with their labels and the evidence at their tokens, by the member that never saw the text.

    In the place of a share of them stands a blank: unknown words without evidence, with the label of any text. So a
    text in which nothing can be read gets the prior, however long it is.
    """

    def __init__(
        self,
        texts: Labelled,
        held_out: HeldOut,
        *,
        window: int,
        crop_share: float = 0.0,
        blank_share: float = 0.0,
        unknown: int = UNK_ID,
        seed: int,
    ) -> None:
        super().__init__(texts.documents, window, crop_share, seed)
        self.labels, self.held_out, self.blank_share, self.unknown = texts.labels, held_out, blank_share, unknown
        lengths = np.array([len(d) for d in texts.documents])
        self.first = np.cumsum(lengths) - lengths

    @staticmethod
    def of(texts: Labelled, held_out: HeldOut, options: TrainingOptions, *, unknown: int, seed: int) -> TrainingTexts:
        """As a preset has them."""
        return TrainingTexts(
            texts,
            held_out,
            window=options.window,
            crop_share=options.crop_share,
            blank_share=options.blank_share,
            unknown=unknown,
            seed=seed,
        )

    def __getitem__(self, row: int) -> dict[str, Any]:
        if self.blank_share:
            random = np.random.default_rng((self.seed, self.epoch, row, 1))
            if random.random() < self.blank_share:
                return self._blank(random)
        start, end = self.bounds(row)
        first = self.first[row]
        return {
            "document": self.documents[row][start:end],
            "label": int(self.labels[row]),
            "member": self.held_out.by_token[first + start : first + end],
            "member_bias": self.held_out.bias[row],
        }

    def _blank(self, random: np.random.Generator) -> dict[str, Any]:
        tokens, row = short_length(random), int(random.integers(len(self.labels)))
        return {
            "document": np.full(tokens, self.unknown, np.int64),
            "label": int(self.labels[row]),
            "member": np.zeros((tokens, *self.held_out.by_token.shape[1:]), np.float16),
            "member_bias": self.held_out.bias[row],
        }


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack texts end to end; `labels` comes first because the Trainer reads the number of rows off the first tensor."""
    input_ids, lengths = pack([row["document"] for row in rows])
    batch = {"labels": torch.tensor([row["label"] for row in rows]), "input_ids": input_ids, "lengths": lengths}
    if "member" in rows[0]:
        batch["member"] = torch.from_numpy(np.concatenate([row["member"] for row in rows]).astype(np.float32))
        batch["member_bias"] = torch.from_numpy(np.stack([row["member_bias"] for row in rows]))
    return batch


def train_streams(
    model: BetForSequenceClassification,
    train: Labelled,
    held_out: HeldOut,
    validation: Labelled,
    options: TrainingOptions,
    *,
    run: Path,
    seed: int,
    resume: bool,
) -> dict[str, Any]:
    """Train in place, leave rolling checkpoints and milestones in `run`, and load the best milestone's weights.

    Returns:
        The best milestone: `step`, `epoch`, `nll` (at its best temperature) and `accuracy` on validation.

    Raises:
        CheckpointError: if `resume` is asked for and no checkpoint is whole.
    """
    encoder = model.trunk.encoder
    if not options.encoder_rate:
        encoder.requires_grad_(False)
    texts = TrainingTexts.of(train, held_out, options, unknown=model.config.unk_token_id, seed=seed)
    milestones = Milestones(model, run / MILESTONES)
    trainer = AtomicTrainer(
        model=model,
        args=trainer_arguments(
            options,
            run / ROLLING,
            seed=seed,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            per_device_eval_batch_size=_EVALUATION_ROWS,
        ),
        train_dataset=texts,
        eval_dataset=validation,
        data_collator=collate,
        compute_metrics=_metrics,
        callbacks=[milestones],
        optimizers=(optimizer_of(model, options, encoder.parameters(), options.encoder_rate), None),
    )
    trainer.go("training", texts, resume=resume)
    best = milestones.best()
    if best is None:
        raise TrainError("training ended without an evaluation; give at least one epoch")
    folder, record = best
    model.load_state_dict(BetForSequenceClassification.from_pretrained(folder).state_dict())
    model.train(False)
    return record


class Milestones(TrainerCallback):
    """Keeps the weights of every improvement of the validation NLL; what is best is read from disk, so it survives."""

    def __init__(self, model: BetForSequenceClassification, folder: Path) -> None:
        self.model, self.folder = model, folder

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a milestone if this evaluation is the best so far."""
        metrics = kwargs["metrics"]
        nll = metrics["eval_nll"]
        best = self.best()
        if best is not None and nll >= best[1]["nll"]:
            return
        record = {"step": state.global_step, "epoch": state.epoch, "nll": nll, "accuracy": metrics["eval_accuracy"]}
        with written_whole(self.folder / f"step-{state.global_step}") as staging:
            self.model.save_pretrained(staging)
            (staging / "milestone.json").write_text(json.dumps(record), encoding="utf-8")
        _log.info("milestone: step %d, validation nll %.4f, accuracy %.4f", record["step"], nll, record["accuracy"])

    def best(self) -> tuple[Path, dict[str, Any]] | None:
        """The whole milestone with the lowest validation NLL."""
        found = []
        for path in sorted(self.folder.glob("step-*")):
            try:
                verify(path)
            except CheckpointError as error:
                _log.warning("milestone passed over: %s", error)
            else:
                found.append((path, json.loads((path / "milestone.json").read_text(encoding="utf-8"))))
        return min(found, key=lambda pair: float(pair[1]["nll"]), default=None)


def _metrics(prediction: Any) -> dict[str, float]:
    """Accuracy and negative log-likelihood (nats) from log probabilities [N, C] and labels [N].

    At the temperature that suits these rows best, since the posterior is fitted later: streams grow surer than right
    the longer they train, and the earlier of two milestones would win by its doubt alone.
    """
    logits, labels = prediction.predictions, prediction.label_ids
    at_best = torch.from_numpy(logits / fit_temperature(logits, labels))
    return {
        "nll": float(torch.nn.functional.cross_entropy(at_best, torch.from_numpy(labels))),
        "accuracy": float((logits.argmax(1) == labels).mean()),
    }
