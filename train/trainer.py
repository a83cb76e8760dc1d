"""The Hugging Face `Trainer` as both phases of training use it: pretraining and training.

Warm-up, schedule, clipping, accumulation, mixed precision and gradient checkpointing are the Trainer's options. Ours
are checkpoints that are whole or not there, one optimizer for the whole package, and plain progress lines where there
is no terminal.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
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

from train.checkpoint import newest_whole, written_whole
from train.errors import ConfigError
from train.preset import OptimizerOptions

KEEP_ROLLING = 3
_log = logging.getLogger(__name__)


class ByEpoch(Protocol):
    """Data that differs from epoch to epoch."""

    epoch: int

    def __len__(self) -> int:
        """Texts of an epoch."""


def trainer_arguments(options: OptimizerOptions, rolling: Path, *, seed: int, **more: Any) -> TrainingArguments:
    """What both phases ask of the Trainer; rolling checkpoints go to `rolling`.

    Raises:
        ConfigError: if the hardware cannot compute in `options.mixed_precision`.
    """
    _check_precision(options.mixed_precision)
    return TrainingArguments(
        output_dir=str(rolling),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=options.gradient_accumulation,
        activation_checkpointing=options.gradient_checkpointing,
        bf16=options.mixed_precision == "bf16",
        fp16=options.mixed_precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),  # said outright: the Trainer refuses bf16 on CPU otherwise
        save_strategy="epoch",
        save_total_limit=KEEP_ROLLING,
        logging_steps=50,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
        **more,
    )


def _check_precision(wanted: str) -> None:
    if wanted == "fp16" and not torch.accelerator.is_available():
        raise ConfigError(
            'mixed_precision "fp16" needs a GPU, and this machine has none: set "no" or "bf16" in the preset'
        )
    if wanted == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise ConfigError(f'mixed_precision "bf16": {name} does not compute in it: set "fp16" or "no" in the preset')


def optimizer_of(
    model: nn.Module, options: OptimizerOptions, slow: Iterable[torch.Tensor] = (), slow_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW that decays matrices alone; the parameters `slow` learn at `slow_rate` of the rate.

    Fused: one call for all parameters, a fifth faster a step on CPU. Word vectors do not decay: most words of a
    vocabulary are in no batch, and would vanish.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    slowly = {id(parameter) for parameter in slow}
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.ndim > 1 and id(parameter) not in tables else 0.0
            rate = options.learning_rate * (slow_rate if id(parameter) in slowly else 1.0)
            groups.setdefault((decay, rate), []).append(parameter)
    first, second = options.adam_betas
    return torch.optim.AdamW(
        [{"params": found, "weight_decay": decay, "lr": rate} for (decay, rate), found in groups.items()],
        lr=options.learning_rate,
        betas=(first, second),
        fused=True,
    )


class AtomicTrainer(Trainer):
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

    def go(self, phase: str, data: ByEpoch, *, resume: bool) -> None:
        """Train to the end, from the newest whole rolling checkpoint if `resume` is asked for.

        Raises:
            CheckpointError: if `resume` is asked for and no checkpoint is whole.
        """
        self.add_callback(_Epochs(data))
        self.remove_callback(PrinterCallback)
        if not sys.stderr.isatty():
            self.remove_callback(ProgressCallback)
            self.add_callback(_Lines(phase))
        newest, passed_over = newest_whole(Path(self.args.output_dir or "")) if resume else (None, [])
        for reason in passed_over:
            _log.warning("passed over: %s", reason)
        if resume:
            _log.info(
                "%s: %s",
                phase,
                f"resuming from {newest}" if newest else "no rolling checkpoint yet, starting at step 0",
            )
        self.train(resume_from_checkpoint=str(newest) if newest else None)


class _Epochs(TrainerCallback):
    """Tells the data which epoch it is, also after a resume in the middle of one."""

    def __init__(self, data: ByEpoch) -> None:
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.data.epoch = int(state.epoch or 0)


class _Lines(TrainerCallback):
    """Progress as plain lines, for logs and pipelines."""

    def __init__(self, phase: str) -> None:
        self.phase, self.started, self.first_step = phase, 0.0, 0

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
            "%s: step %d/%d  loss %.4f  %.0f texts/s  %.0f s left",
            self.phase,
            state.global_step,
            state.max_steps,
            float(logs["loss"]),
            args.train_batch_size * args.gradient_accumulation_steps / per_step,
            per_step * (state.max_steps - state.global_step),
        )
