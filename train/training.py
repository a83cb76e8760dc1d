"""Train the trunk with the Hugging Face `Trainer`, on packed batches.

Warm-up, schedule, clipping, accumulation, mixed precision and gradient checkpointing are the Trainer's options. Ours
are the data (a fresh stretch of every text in each epoch, packed end to end), checkpoints that are whole or not there,
and plain progress lines where there is no terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from train.checkpoint import newest_whole, verify, written_whole
from train.errors import CheckpointError, TrainError
from train.model.bet import BetForSequenceClassification
from train.prediction import Ids, pack
from train.preset import TrainingOptions

ROLLING, MILESTONES = "rolling", "milestones"
_KEEP_ROLLING = 3
_EVALUATION_ROWS = 32
_log = logging.getLogger(__name__)


class Windows(Dataset[dict[str, Any]]):
    """Texts as token ids; one longer than `window` gives a stretch that depends on seed, epoch and row only."""

    def __init__(self, documents: list[Ids], labels: npt.NDArray[np.int64], window: int | None, seed: int) -> None:
        self.documents, self.labels, self.window, self.seed, self.epoch = documents, labels, window, seed, 0

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, row: int) -> dict[str, Any]:
        document = self.documents[row]
        if self.window is not None and len(document) > self.window:
            random = np.random.default_rng((self.seed, self.epoch, row))
            start = random.integers(0, len(document) - self.window + 1)
            document = document[start : start + self.window]
        return {"document": document, "label": int(self.labels[row])}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack texts end to end; `labels` comes first because the Trainer reads the number of rows off the first tensor."""
    input_ids, lengths = pack([row["document"] for row in rows])
    return {"labels": torch.tensor([row["label"] for row in rows]), "input_ids": input_ids, "lengths": lengths}


def train_trunk(
    model: BetForSequenceClassification,
    train: tuple[list[Ids], npt.NDArray[np.int64]],
    validation: tuple[list[Ids], npt.NDArray[np.int64]],
    options: TrainingOptions,
    run: Path,
    *,
    seed: int,
    resume: bool,
) -> dict[str, Any]:
    """Train in place, leave rolling checkpoints and milestones in `run`, and load the best milestone's weights.

    Returns:
        The best milestone: `step`, `epoch`, `nll` and `accuracy` on validation.

    Raises:
        CheckpointError: if `resume` is asked for and no checkpoint is whole.
    """
    windows = Windows(*train, window=options.window, seed=seed)
    arguments = TrainingArguments(
        output_dir=str(run / ROLLING),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=_EVALUATION_ROWS,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_betas[0],
        adam_beta2=options.adam_betas[1],
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=options.gradient_accumulation,
        activation_checkpointing=options.gradient_checkpointing,
        bf16=options.mixed_precision == "bf16",
        fp16=options.mixed_precision == "fp16",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=_KEEP_ROLLING,
        logging_steps=50,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
    )
    milestones = Milestones(model, run / MILESTONES)
    trainer = _AtomicTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        eval_dataset=Windows(*validation, window=None, seed=seed),
        data_collator=collate,
        compute_metrics=_metrics,
        callbacks=[_Epochs(windows), milestones],
    )
    trainer.remove_callback(PrinterCallback)
    if not sys.stderr.isatty():
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Lines(len(windows)))
    newest, passed_over = newest_whole(run / ROLLING) if resume else (None, [])
    for reason in passed_over:
        _log.warning("passed over: %s", reason)
    if resume:
        _log.info("resuming from %s", newest) if newest else _log.info("no rolling checkpoint yet: starting at step 0")
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
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


class _AtomicTrainer(Trainer):
    """A Trainer whose rolling checkpoints are moved in whole, after their hashes were written."""

    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        rolling = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with written_whole(rolling / name) as staging:
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            # The Trainer wrote <staging>/checkpoint-N; its content is what is moved in.
            written = staging / name
            for path in written.iterdir():
                path.rename(staging / path.name)
            written.rmdir()
        self._forget_old(rolling)

    def _forget_old(self, rolling: Path) -> None:
        rotate_checkpoints(output_dir=str(rolling), save_total_limit=self.args.save_total_limit)


class _Epochs(TrainerCallback):
    """Tells the data which epoch it is, also after a resume in the middle of one."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.windows.epoch = int(state.epoch or 0)


class _Lines(TrainerCallback):
    """Progress as plain lines, for logs and pipelines."""

    def __init__(self, rows: int) -> None:
        self.rows, self.started, self.first_step = rows, 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self.started
        done = state.global_step - self.first_step
        per_step = seconds / max(done, 1)
        _log.info(
            "step %d/%d  loss %.4f  %.0f texts/s  %.0f s left",
            state.global_step,
            state.max_steps,
            float(logs["loss"]),
            args.train_batch_size * args.gradient_accumulation_steps / per_step,
            per_step * (state.max_steps - state.global_step),
        )


def _metrics(prediction: Any) -> dict[str, float]:
    """Accuracy and negative log-likelihood (nats) from log probabilities [N, C] and labels [N]."""
    logits, labels = prediction.predictions, prediction.label_ids
    return {
        "nll": float(-logits[np.arange(len(labels)), labels].mean()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
    }
