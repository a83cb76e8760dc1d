"""Teach the encoder the language of the texts before it sees a label: predict hidden tokens from their segment.

On the corpus's own training part, minutes long. Without it the streams gain nothing over the evidence of n-grams. Rare
words are hidden more often than frequent ones, since "the" teaches little; the softmax runs over the batch's own
targets and sampled negatives, against the word vectors themselves (tied embedding), which are trained here and frozen
afterwards.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from train.checkpoint import verify, written_whole
from train.errors import CheckpointError
from train.model.bet import BetForSequenceClassification
from train.model.position import position_features
from train.model.segments import segment
from train.model.streams import Encoder
from train.prediction import Ids, pack
from train.preset import PretrainingOptions
from train.trainer import AtomicTrainer, optimizer_of, trainer_arguments
from train.training import Stretches

PRETRAINED, PRETRAINING = "pretrained", "pretraining"
_WEIGHTS = "encoder.safetensors"
_FREQUENT = 1e-3  # share of the tokens above which a word is hidden less often
_KEPT = 0.1  # of the hidden tokens are shown as they are, so that a known word's state is trained too
_SHARPNESS = 10.0  # of the tied embedding, whose vectors have a deviation of .1
_log = logging.getLogger(__name__)


class HiddenTokens(nn.Module):
    """The model's encoder with what predicting hidden tokens needs; its loss is in nats a hidden token."""

    hide: Tensor
    cumulative: Tensor

    def __init__(
        self, model: BetForSequenceClassification, encoder: Encoder, counts: Ids, options: PretrainingOptions
    ) -> None:
        super().__init__()
        self.config, self.read_tokens = model.config, model.read_tokens
        self.encoder, self.negatives = encoder, options.negatives
        self.to_embedding = nn.Linear(model.config.hidden_size, model.config.embedding_size)
        share = torch.from_numpy(counts / counts.sum()).float()
        self.bias = nn.Parameter((share + 1e-9).log())
        self.register_buffer("hide", options.hidden_share * (_FREQUENT / share.clamp(min=1e-9)).sqrt().clamp(max=1))
        self.register_buffer("cumulative", torch.cumsum(share**0.75, 0) / (share**0.75).sum())

    def forward(self, input_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Texts end to end [T] with their lengths [R, 1] -> {"loss": scalar}."""
        tokens = self.read_tokens(input_ids, lengths)
        segments = segment(tokens, lengths, self.config.segment_length)
        ids, mask = segments.ids, segments.mask
        hidden = mask & (torch.rand(ids.shape, device=ids.device) < self.hide[ids])
        shown = torch.rand(ids.shape, device=ids.device) < _KEPT
        seen = torch.where(hidden & ~shown, self.config.unk_token_id, ids)
        position = position_features(segments.offset, tokens.lengths[segments.row][:, None])
        predicted = self.to_embedding(self.encoder(seen, position, segments)[hidden.flatten()])
        target = ids[hidden]
        drawn = torch.searchsorted(self.cumulative, torch.rand(self.negatives, device=ids.device))
        candidates = torch.cat([target, drawn.clamp(max=len(self.bias) - 1)]).unique()
        logits = _SHARPNESS * predicted @ self.encoder.embedding.weight[candidates].T + self.bias[candidates]
        return {"loss": nn.functional.cross_entropy(logits, torch.searchsorted(candidates, target))}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pack texts end to end."""
    input_ids, lengths = pack([row["document"] for row in rows])
    return {"input_ids": input_ids, "lengths": lengths}


def pretrain(
    model: BetForSequenceClassification,
    documents: list[Ids],
    options: PretrainingOptions,
    run: Path,
    *,
    seed: int,
    resume: bool,
) -> None:
    """Train the model's encoder in place and seal its weights in `run`; a sealed encoder is loaded instead.

    Raises:
        CheckpointError: if `resume` is asked for and no rolling checkpoint is whole.
    """
    if not options.epochs:
        return
    encoder, folder = model.trunk.encoder, run / PRETRAINED
    assert isinstance(encoder, Encoder), "an encoder from a folder comes pretrained"
    if folder.is_dir():
        try:
            verify(folder)
        except CheckpointError as error:
            _log.warning("pretraining is done again: %s", error)
        else:
            load_encoder(encoder, run)
            _log.info("pretrained encoder: reused from %s", folder)
            return
    stretches = Stretches(documents, options.window, 0.0, seed)
    counts = np.bincount(np.concatenate(documents), minlength=model.config.vocab_size)
    encoder.embedding.weight.requires_grad_(True)
    set_seed(seed)
    objective = HiddenTokens(model, encoder, counts, options)
    trainer = AtomicTrainer(
        model=objective,
        args=trainer_arguments(options, run / PRETRAINING, seed=seed, lr_scheduler_type="linear"),
        train_dataset=stretches,
        data_collator=collate,
        optimizers=(optimizer_of(objective, options, [encoder.embedding.weight], options.embedding_rate), None),
    )
    trainer.go("pretraining", stretches, resume=resume)
    encoder.embedding.weight.requires_grad_(False)
    encoder.zero_grad(set_to_none=True)
    with written_whole(folder) as staging:
        save_file({name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}, staging / _WEIGHTS)
    shutil.rmtree(run / PRETRAINING)


def load_encoder(encoder: Encoder, run: Path) -> None:
    """Load the weights that pretraining sealed in `run`."""
    encoder.load_state_dict(load_file(run / PRETRAINED / _WEIGHTS))
