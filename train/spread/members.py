"""Members inside one model, and an ensemble inside one network: the two ways to an ensemble at the price of one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.model.bet import BetComponents, BetForSequenceClassification
from train.preset import TrainingOptions
from train.spread.loop import train_to_compare
from train.spread.methods import LastLayer, Spread
from train.training import TrainingTexts

_FAST_DEVIATION = 0.25  # of a member's factors around one, in which members differ at first


class MemberLinear(nn.Module):
    """A linear layer W that each member multiplies by a rank-one matrix of its own: W ∘ (s_m r_mᵀ), and its bias.

    Source: BatchEnsemble (Wen et al. 2020, 2002.06715).
    """

    def __init__(self, shared: nn.Linear, members: int) -> None:
        super().__init__()
        self.shared, self.member = shared, 0
        self.factors_in = nn.Parameter(1 + _FAST_DEVIATION * torch.randn(members, shared.in_features))
        self.factors_out = nn.Parameter(1 + _FAST_DEVIATION * torch.randn(members, shared.out_features))
        self.biases = nn.Parameter(shared.bias.detach().repeat(members, 1))

    @property
    def weight(self) -> Tensor:
        """Of the present member [out, in]; the model joins layers by their weights."""
        factors = self.factors_out[self.member][:, None] * self.factors_in[self.member]
        return self.shared.weight * factors

    @property
    def bias(self) -> Tensor:
        """Of the present member [out]."""
        return self.biases[self.member]

    @property
    def out_features(self) -> int:
        """As of the shared layer."""
        return self.shared.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], of the present member."""
        return nn.functional.linear(x, self.weight, self.bias)


class BatchEnsemble(Spread):
    """Both streams and the encoder's blocks with members; a training step is one member's."""

    def __init__(self, base: BetForSequenceClassification, members: int) -> None:
        super().__init__(base)
        self.count = members
        self.layers: list[MemberLinear] = []
        for module in list(base.trunk.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    child.bias.requires_grad_(False)  # every member has its own
                    layer = MemberLinear(child, members)
                    setattr(module, name, layer)
                    self.layers.append(layer)

    def turn(self, member: int) -> None:
        """Make `member` the present one."""
        for layer in self.layers:
            layer.member = member

    def fit(self, texts: TrainingTexts, options: TrainingOptions, *, seed: int) -> None:
        """Train as the checkpoint was, a random member a step."""

        def loss_of(batch: dict[str, Any]) -> Tensor:
            self.turn(int(torch.randint(self.count, ())))
            loss: Tensor = self.base(**batch).loss
            return loss

        train_to_compare("BatchEnsemble", self, texts, options, loss_of, epochs=options.epochs, seed=seed)

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """A pass for each member."""
        found = []
        for member in range(self.count):
            self.turn(member)
            found.append(self.base.components(input_ids, lengths))
        trunk = torch.cat([one.trunk for one in found], 1)
        return BetComponents(found[0].evidence, torch.zeros_like(found[0].novelty), trunk)


class Distilled(LastLayer):
    """One network that answers with the mean and the variance of an ensemble's logits (2305.10384).

    It starts from the first member, and learns N(mean, variance) of the members' logits on stretches of training text
    by maximum likelihood. The members have learnt from these texts, so they agree more there than on new ones: the
    variance is known to be too small, and the posterior scales it.
    """

    def __init__(self, base: BetForSequenceClassification, texts: TrainingTexts) -> None:
        super().__init__(copy.deepcopy(base), texts)
        features = len(self.mean)
        self.variance = nn.Sequential(nn.Linear(features, 32), nn.GELU(), nn.Linear(32, 1))

    def fit(
        self,
        members: Sequence[BetForSequenceClassification],
        texts: TrainingTexts,
        options: TrainingOptions,
        *,
        seed: int,
    ) -> None:
        """Learn from the members."""

        def loss_of(batch: dict[str, Any]) -> Tensor:
            batch.pop("labels")
            with torch.no_grad():
                found = [member.components(**batch) for member in members]
                wanted = torch.stack([_logit(one) for one in found], 1)  # [R, M, L]
            components, features = self.with_features(**batch)
            variance = self.log_variance(features).exp()[:, None, None]
            return ((wanted - _logit(components)[:, None]) ** 2 / variance + variance.log()).mean() / 2

        train_to_compare("distillation", self, texts, options, loss_of, epochs=options.epochs / 2, seed=seed)

    def log_variance(self, features: Tensor) -> Tensor:
        """Features [R, F] -> [R]; from e^-6 to e^4."""
        raw: Tensor = self.variance(features)[:, 0]
        return 5 * torch.tanh(raw / 5) - 1

    def distance(self, features: Tensor) -> Tensor:
        """The variance of the logit."""
        return self.log_variance(features).exp()


def _logit(found: BetComponents) -> Tensor:
    return found.evidence + found.trunk.mean(1)
