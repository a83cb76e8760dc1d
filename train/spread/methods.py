"""Ways to a spread that need no training of their own: each fills the posterior's variance, or its orders, differently.

Every way is a module that answers `components`, as the model does: evidence [R, L], two variance features [R, 2] in the
place of novelty, and trunk logits [R, K, L], of which samples and members simply make more. So the posterior, its fit
and the rows that fit it are the same for all of them; what is compared is the source of the spread alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from train.model.bet import BetComponents, BetForSequenceClassification
from train.model.dropout import ByteDropout
from train.model.streams import SUMMARISED
from train.prediction import Ids
from train.training import TrainingTexts, collate

_SAMPLE = 4000  # training texts that say where features lie; 166 of them are estimated well by far fewer
_BATCH = 32
_PRIOR_PRECISION = 1.0  # of weights under Laplace; features have unit variance
_RANDOM_FEATURES = 512  # of the Gaussian process


class Spread(nn.Module):
    """A model whose spread has another source; `device` and `config` are those of the model."""

    def __init__(self, base: BetForSequenceClassification) -> None:
        super().__init__()
        self.base = base
        self.config, self.device = base.config, base.device

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """As `BetForSequenceClassification.components`."""
        raise NotImplementedError


class Constant(Spread):
    """One variance for every text."""

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """Novelty is forgotten."""
        found = self.base.components(input_ids, lengths)
        return found._replace(novelty=torch.zeros_like(found.novelty))


class DeepEnsemble(Spread):
    """Members trained from other seeds (Lakshminarayanan et al. 2017, 1612.01474), each with its own evidence."""

    def __init__(self, members: Sequence[BetForSequenceClassification]) -> None:
        super().__init__(members[0])
        self.members = nn.ModuleList(members)

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """Mean evidence; a member's distance from it is part of its logits."""
        members = (cast("BetForSequenceClassification", member) for member in self.members)
        found = [member.components(input_ids, lengths) for member in members]
        evidence = torch.stack([one.evidence for one in found]).mean(0)
        trunk = torch.cat([one.trunk + (one.evidence - evidence)[:, None] for one in found], 1)
        return BetComponents(evidence, torch.zeros_like(found[0].novelty), trunk)


class MonteCarloDropout(Spread):
    """Samples with dropout left on (Gal & Ghahramani 2016, 1506.02142); no graph, since it draws random numbers."""

    def __init__(self, base: BetForSequenceClassification, samples: int) -> None:
        super().__init__(base)
        self.samples = samples

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """A sample's logits are averaged over orders."""
        layers = [module for module in self.base.modules() if isinstance(module, ByteDropout)]
        for layer in layers:
            layer.train(True)
        try:
            found = [self.base.components(input_ids, lengths) for _ in range(self.samples)]
        finally:
            for layer in layers:
                layer.train(False)
        trunk = torch.stack([one.trunk.mean(1) for one in found], 1)
        return BetComponents(found[0].evidence, torch.zeros_like(found[0].novelty), trunk)


class LastLayer(Spread):
    """What the last layers of both streams read, standardised on training texts; base of the ways that measure there.

    Their inputs, scaled as they enter the logit: read-outs (mean over orders) and statistics, [R, F].
    """

    mean: Tensor
    deviation: Tensor
    unit: Tensor

    def __init__(self, base: BetForSequenceClassification, texts: TrainingTexts) -> None:
        super().__init__(base)
        features, self.probability, self.labels = _of_training(base, texts)
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.std(0).clamp(min=1e-6))
        self.training_features = (features - self.mean) / self.deviation

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """The variance features are the distance and zero."""
        found, features = self.with_features(input_ids, lengths)
        distance = self.distance(features)
        return found._replace(novelty=torch.stack([distance, torch.zeros_like(distance)], 1))

    def with_features(
        self, input_ids: Tensor, lengths: Tensor, member: Tensor | None = None, member_bias: Tensor | None = None
    ) -> tuple[BetComponents, Tensor]:
        """Components, and what the last layers read [R, F]."""
        with _heads(self.base) as read:
            found = self.base.components(input_ids, lengths, member, member_bias)
            return found, (read.features() - self.mean) / self.deviation

    def distance(self, features: Tensor) -> Tensor:
        """How far features [R, F] lie from those of training, [R]; about one for a training text."""
        raise NotImplementedError

    def scaled_to_one(self) -> None:
        """Divide distances by their mean over training texts."""
        self.register_buffer("unit", torch.ones(()))
        self.unit = self.distance(self.training_features).mean()


class Mahalanobis(LastLayer):
    """Squared distance to the nearest class mean under one covariance (Lee et al. 2018, 1807.03888)."""

    means: Tensor
    precision: Tensor

    def __init__(self, base: BetForSequenceClassification, texts: TrainingTexts) -> None:
        super().__init__(base, texts)
        x, labels = self.training_features, self.labels
        means = torch.stack([x[labels == label].mean(0) for label in labels.unique()])
        rest = x - means[labels]
        covariance = rest.T @ rest / len(x) + 1e-3 * torch.eye(x.shape[1])
        self.register_buffer("means", means)
        self.register_buffer("precision", torch.linalg.inv(covariance))
        self.scaled_to_one()

    def distance(self, features: Tensor) -> Tensor:
        """Of the nearest class."""
        rest = features[:, None] - self.means  # [R, C, F]
        return ((rest @ self.precision) * rest).sum(-1).amin(1) / self.unit


class Laplace(LastLayer):
    """Variance of the logit under a Laplace approximation of the last layers' weights (Kristiadi et al. 2002.10118)."""

    covariance: Tensor

    def __init__(self, base: BetForSequenceClassification, texts: TrainingTexts) -> None:
        super().__init__(base, texts)
        x = self.training_features
        share = len(texts) / len(x)
        weight = (self.probability * (1 - self.probability)).mean(1)
        hessian = share * (x * weight[:, None]).T @ x + _PRIOR_PRECISION * torch.eye(x.shape[1])
        self.register_buffer("covariance", torch.linalg.inv(hessian))
        self.scaled_to_one()

    def distance(self, features: Tensor) -> Tensor:
        """The quadratic form."""
        return ((features @ self.covariance) * features).sum(1) / self.unit


class GaussianProcess(LastLayer):
    """Variance of a Gaussian process on random features of the last layers: SNGP's head (Liu et al. 2020, 2006.10108).

    The layers below are not spectrally normalised: they are those of the model that it is compared with.
    """

    frequency: Tensor
    phase: Tensor
    covariance: Tensor

    def __init__(self, base: BetForSequenceClassification, texts: TrainingTexts) -> None:
        super().__init__(base, texts)
        x = self.training_features
        generator = torch.Generator().manual_seed(0)
        # A length scale of √F: two texts are about √(2F) apart.
        self.register_buffer(
            "frequency", torch.randn(x.shape[1], _RANDOM_FEATURES, generator=generator) / x.shape[1] ** 0.5
        )
        self.register_buffer("phase", 2 * torch.pi * torch.rand(_RANDOM_FEATURES, generator=generator))
        random = self.random_features(x)
        weight = (self.probability * (1 - self.probability)).mean(1)
        precision = len(texts) / len(x) * (random * weight[:, None]).T @ random + torch.eye(_RANDOM_FEATURES)
        self.register_buffer("covariance", torch.linalg.inv(precision))
        self.scaled_to_one()

    def random_features(self, features: Tensor) -> Tensor:
        """[R, F] -> [R, 512], whose products approximate a Gaussian kernel (Rahimi & Recht 2007)."""
        cosines: Tensor = (2 / _RANDOM_FEATURES) ** 0.5 * torch.cos(features @ self.frequency + self.phase)
        return cosines

    def distance(self, features: Tensor) -> Tensor:
        """The variance."""
        random = self.random_features(features)
        variance: Tensor = ((random @ self.covariance) * random).sum(1)
        return variance / self.unit


class _Heads:
    """Inputs of the last layers, as they pass."""

    def __init__(self, base: BetForSequenceClassification) -> None:
        trunk = base.trunk
        words, evidence = base.log_scales[1].detach().exp(), base.log_scales[2].detach().exp()
        self.layers = [
            (trunk.words.from_readout, words.expand(trunk.words.from_readout.in_features)),
            (trunk.evidence.from_readout, evidence.expand(trunk.evidence.from_readout.in_features)),
            (trunk.summaries, _of_statistics(words, evidence)),
        ]
        self.seen: dict[int, Tensor] = {}

    def features(self) -> Tensor:
        """[R, F] of the last pass."""
        found = [self.seen[i][..., : len(scale)] * scale for i, (_, scale) in enumerate(self.layers)]
        return torch.cat([one.mean(1) if one.ndim == 3 else one for one in found], 1)


def _of_statistics(words: Tensor, evidence: Tensor) -> Tensor:
    """Scales [69] of what `Summaries` reads: each of words, then of evidence; the length serves both."""
    shared = (words**2 + evidence**2).sqrt()[None]
    return torch.cat([*(scale.expand(n) for n in SUMMARISED for scale in (words, evidence)), shared])


@contextmanager
def _heads(base: BetForSequenceClassification) -> Iterator[_Heads]:
    read = _Heads(base)

    def keep(index: int) -> object:
        return lambda _, inputs: read.seen.__setitem__(index, inputs[0])

    hooks = [layer.register_forward_pre_hook(keep(i)) for i, (layer, _) in enumerate(read.layers)]  # type: ignore[arg-type]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _of_training(base: BetForSequenceClassification, texts: TrainingTexts) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, F], probabilities [N, C] and labels [N] of whole training texts, with honest evidence."""
    base.train(False)
    rows: Ids = torch.linspace(0, len(texts) - 1, min(_SAMPLE, len(texts))).long().numpy()
    features, probabilities, labels = [], [], []
    for start in range(0, len(rows), _BATCH):
        batch = collate([texts[int(row)] for row in rows[start : start + _BATCH]])
        label = batch.pop("labels")
        with _heads(base) as read:
            p = base.posterior(*base.components(**batch)).probabilities
            features.append(read.features())
        probabilities.append(p)
        labels.append(label)
    return torch.cat(features), torch.cat(probabilities), torch.cat(labels)
