"""The plain training loop of what is trained only to be compared; what is kept goes through the Trainer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, set_seed

from train.preset import TrainingOptions
from train.trainer import optimizer_of
from train.training import TrainingTexts, collate

_log = logging.getLogger(__name__)


def train_to_compare(
    name: str,
    model: nn.Module,
    texts: TrainingTexts,
    options: TrainingOptions,
    loss_of: Callable[[dict[str, Any]], Tensor],
    *,
    epochs: float,
    seed: int,
) -> None:
    """Train `model` in place with the optimizer, schedule and batches of `options`, for other epochs.

    Args:
        name: for progress.
        model: what is optimized; only parameters that want gradients.
        texts: stretches, drawn fresh each epoch.
        options: of the checkpoint's training.
        loss_of: batch of `train.training.collate` -> scalar.
        epochs: over the texts; may be a fraction.
        seed: of everything random.
    """
    set_seed(seed)
    per_epoch = math.ceil(len(texts) / options.batch_size)
    steps = math.ceil(epochs * per_epoch)
    optimizer = optimizer_of(model, options)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(options.warmup * steps), steps)
    model.train(True)
    started, order = time.perf_counter(), np.zeros(0, np.int64)
    for step in range(steps):
        texts.epoch, at = divmod(step, per_epoch)
        if at == 0:
            order = np.random.default_rng((seed, texts.epoch)).permutation(len(texts))
        rows = order[at * options.batch_size : (at + 1) * options.batch_size]
        loss = loss_of(collate([texts[int(row)] for row in rows]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            left = (time.perf_counter() - started) / (step + 1) * (steps - step - 1)
            _log.info("%s: step %d/%d  loss %.4f  %.0f s left", name, step + 1, steps, loss.item(), left)
    model.train(False)
