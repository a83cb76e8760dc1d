"""From logits to the served answer, one module for each kind of Hugging Face head, with its decision as buffers.

Each applies the activation that the checkpoint's configuration implies, as transformers' text-classification pipeline
does: the value itself for regression, a sigmoid for several labels, else a softmax. Thresholds stand inside the graph,
so that whoever serves it decides as was calibrated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from export.decisions import AnyDecision, MultiLabelDecision, RegressionDecision
from export.outputs import MULTI_LABEL, REGRESSION, SOFTMAX, Kind
from train.decision import Decision


class SoftmaxHead(nn.Module):
    """One of several classes: the tensors that `export.outputs.SOFTMAX` names."""

    kind: Kind = SOFTMAX
    temperature: Tensor
    risk_threshold: Tensor
    conformal_threshold: Tensor

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        for name in ("temperature", "risk_threshold", "conformal_threshold"):
            self.register_buffer(name, torch.tensor(getattr(decision, name), dtype=torch.float32))

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Decide on R texts.

        Args:
            logits: [R, C].

        Returns:
            label_index int64 [R, 1], probabilities [R, C], total [R, 1] (nats), review bool [R, 1], reason_index int64
            [R, 1], prediction_set bool [R, C].
        """
        log_probabilities = torch.log_softmax(logits / self.temperature, dim=-1)
        probabilities = log_probabilities.exp()
        total = -(probabilities * log_probabilities).sum(-1, keepdim=True)
        # Written so that NaN, which compares false with everything, goes to review and into no prediction set.
        uncertain = ~(total <= self.risk_threshold)
        return (
            probabilities.argmax(-1, keepdim=True),
            probabilities,
            total,
            uncertain,
            uncertain.to(torch.int64),
            (1 - probabilities) <= self.conformal_threshold,
        )


class MultiLabelHead(nn.Module):
    """Any number of labels: the tensors that `export.outputs.MULTI_LABEL` names."""

    kind: Kind = MULTI_LABEL
    temperatures: Tensor
    risk_thresholds: Tensor

    def __init__(self, decision: MultiLabelDecision) -> None:
        super().__init__()
        temperatures = [label.temperature for label in decision.labels]
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float32))
        thresholds = [label.risk_threshold for label in decision.labels]
        self.register_buffer("risk_thresholds", torch.tensor(thresholds, dtype=torch.float32))

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Decide on R texts.

        Args:
            logits: [R, C].

        Returns:
            probabilities [R, C], assigned bool [R, C], total [R, 1] (nats; the entropy of the whole answer if the
            labels are independent of each other), undecided bool [R, C], review bool [R, 1], reason_index int64 [R, 1].
        """
        scaled = logits / self.temperatures
        probabilities = torch.sigmoid(scaled)
        # -log p is softplus(-x): the logarithm of a sigmoid that has become 0 would be infinite, and 0 times that NaN.
        entropies = probabilities * softplus(-scaled) + torch.sigmoid(-scaled) * softplus(scaled)
        undecided = ~(entropies <= self.risk_thresholds)  # true for NaN
        review = undecided.any(-1, keepdim=True)
        return (
            probabilities,
            probabilities >= 0.5,
            entropies.sum(-1, keepdim=True),
            undecided,
            review,
            review.to(torch.int64),
        )


class RegressionHead(nn.Module):
    """One number: the tensors that `export.outputs.REGRESSION` names."""

    kind: Kind = REGRESSION
    half_width: Tensor

    def __init__(self, decision: RegressionDecision) -> None:
        super().__init__()
        self.register_buffer("half_width", torch.tensor(decision.half_width, dtype=torch.float32))

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits [R, 1] -> value [R, 1], prediction_interval [R, 2] (lower and upper end, in units of the value)."""
        return logits, torch.cat([logits - self.half_width, logits + self.half_width], dim=-1)


Head = SoftmaxHead | MultiLabelHead | RegressionHead


def head_of(decision: AnyDecision) -> Head:
    """The head that takes a decision."""
    if isinstance(decision, MultiLabelDecision):
        return MultiLabelHead(decision)
    if isinstance(decision, RegressionDecision):
        return RegressionHead(decision)
    return SoftmaxHead(decision)
