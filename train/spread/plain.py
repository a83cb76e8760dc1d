"""A transformer of the same size without evidence, segments or orders: what the field would train on these texts.

Padded, with attention over the whole text and mean pooling. It is given the word vectors that pretraining made, the
same stretches and optimizer, and two epochs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from train.model.bet import BetComponents, BetForSequenceClassification
from train.model.config import BetConfig
from train.model.dropout import shares_dropped
from train.model.streams import Encoder
from train.preset import TrainingOptions
from train.spread.loop import train_to_compare
from train.training import TrainingTexts

_LAYERS = 2  # as many weights as encoder and both streams, without word vectors
_EPOCHS = 2.0


class PlainTransformer(nn.Module):
    """Word vectors, sinusoidal positions, pre-norm blocks, mean pooling, one linear layer."""

    position: Tensor

    def __init__(self, config: BetConfig, vectors: Tensor) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embedding = nn.Embedding.from_pretrained(vectors.clone(), freeze=True)
        self.project_in = nn.Linear(vectors.shape[1], width)
        self.register_buffer("position", _sinusoids(config.max_tokens, width))
        layer = nn.TransformerEncoderLayer(
            width,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, _LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(width, config.logit_columns)

    @staticmethod
    def of_the_size_of(model: BetForSequenceClassification) -> PlainTransformer:
        """Untrained, with that model's word vectors.

        Raises:
            TypeError: if its encoder is one from a folder, which is a plain transformer.
        """
        encoder = model.trunk.encoder
        if not isinstance(encoder, Encoder):
            raise TypeError("the checkpoint's encoder comes from a folder: it is a plain transformer itself")
        return PlainTransformer(model.config, encoder.embedding.weight.detach())

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return self.position.device

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Padded ids [R, N] int64, mask [R, N] bool -> logits [R, L]."""
        x = self.project_in(self.embedding(ids)) + self.position[: ids.shape[1]]
        x = self.blocks(self.dropout(x), src_key_padding_mask=~mask)
        weight = mask[..., None].to(x.dtype)
        logits: Tensor = self.classifier(self.dropout((x * weight).sum(1) / weight.sum(1).clamp(min=1)))
        return logits

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """Packed texts -> logits without evidence, so that the same posterior calibrates them."""
        logits = self(*_padded(input_ids, lengths))
        return BetComponents(torch.zeros_like(logits), torch.zeros(len(logits), 2), logits[:, None])

    def fit(self, texts: TrainingTexts, options: TrainingOptions, *, seed: int) -> None:
        """Train on labels, with words unknown at random as the model's are."""

        def loss_of(batch: dict[str, Any]) -> Tensor:
            ids, mask = _padded(batch["input_ids"], batch["lengths"])
            dropped = torch.rand(ids.shape) < shares_dropped(len(ids), self.config.token_dropout, ids.device)[:, None]
            logits = self(torch.where(dropped & mask, self.config.unk_token_id, ids), mask)
            if logits.shape[1] == 1:
                return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], batch["labels"].float())
            return nn.functional.cross_entropy(logits, batch["labels"])

        train_to_compare("plain transformer", self, texts, options, loss_of, epochs=_EPOCHS, seed=seed)


def _padded(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.split(input_ids, lengths[:, 0].tolist())
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return ids, torch.arange(ids.shape[1]) < lengths


def _sinusoids(length: int, width: int) -> Tensor:
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)
