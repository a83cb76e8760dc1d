"""The module that is exported: the model's calibrated answer with the decision taken on it.

Threshold comparisons stand inside the graph, so that whoever serves it, in whatever runtime, decides as was calibrated.
Ragged in, as the dynamic batcher joins requests: all tokens end to end, and the length of each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.outputs import LEADING
from export.pieces import piece_table
from train.decision import Decision
from train.model import BetForSequenceClassification
from train.model.segments import FILL


class ServedClassifier(nn.Module):
    """The model's answer and the decision, as the tensors that `export.outputs.BET` names.

    Attributes:
        pieces: text by `piece_index`, from `export.pieces`.
    """

    risk_threshold: Tensor
    novelty_threshold: Tensor
    conformal_threshold: Tensor

    def __init__(self, model: BetForSequenceClassification, decision: Decision, pieces: Sequence[str]) -> None:
        """`pieces`: [V], the vocabulary as `export.pieces.vocabulary` gives it."""
        super().__init__()
        self.model = model
        self.pieces = piece_table(pieces)
        self.register_buffer("risk_threshold", torch.tensor(decision.risk_threshold, dtype=torch.float32))
        novelty = math.inf if decision.novelty_threshold is None else decision.novelty_threshold
        self.register_buffer("novelty_threshold", torch.tensor(novelty, dtype=torch.float32))
        self.register_buffer("conformal_threshold", torch.tensor(decision.conformal_threshold, dtype=torch.float32))

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Decide on R texts.

        Args:
            input_ids: [T] int64, rows end to end, shorter rows of a request filled up with -1.
            lengths: [R, 1] int32, tokens of each row, fill included.

        Returns:
            label_index int64 [R, 1], probabilities [R, C], total, aleatoric, epistemic [R, 1] (nats), review bool
            [R, 1], reason_index int64 [R, 1], prediction_set bool [R, C], concentration [R, C], order_dispersion
            [R, 1], evidence_budget int32 [R, 1], piece_index int64 [R, 24] (an n-gram three, the first piece's from 0
            on, another's from V + 1 on, -1 or V where there is none), evidence_nats [R, 8].
        """
        # One token of fill behind the last row belongs to none, and spares the graph a gather from an empty tensor
        # where no row of a batch has a token.
        input_ids = torch.cat([input_ids, torch.full((1,), FILL, dtype=torch.int64, device=input_ids.device)])
        p, leading = self.model.explain(input_ids, lengths, LEADING)
        # Written so that NaN, which compares false with everything, goes to review and into no prediction set.
        uncertain = ~(p.total <= self.risk_threshold)
        unfamiliar = ~(p.epistemic <= self.novelty_threshold)
        reason = torch.where(uncertain, 1, torch.where(unfamiliar, 2, 0))
        later = (torch.arange(leading.ids.shape[2], device=input_ids.device) > 0) * (self.model.config.vocab_size + 1)
        prediction_set = (1 - p.probabilities) <= self.conformal_threshold
        return (
            p.probabilities.argmax(-1, keepdim=True),
            p.probabilities,
            p.total[:, None],
            p.aleatoric[:, None],
            p.epistemic[:, None],
            (uncertain | unfamiliar)[:, None],
            reason[:, None],
            prediction_set,
            p.concentration,
            p.order_dispersion[:, None],
            p.evidence_budget.to(torch.int32)[:, None],
            (leading.ids + later).flatten(1),
            leading.nats,
        )


def example_inputs() -> tuple[Tensor, Tensor]:
    """A batch to trace with: three rows of different lengths, one filled up. Any other shape must do as well."""
    lengths = torch.tensor([[40], [33], [70]], dtype=torch.int32)
    ids = torch.arange(int(lengths.sum()), dtype=torch.int64) % 7 + 2
    ids[60:73] = FILL
    return ids, lengths
