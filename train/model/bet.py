"""The Bayesian Expectation Transformer, read top to bottom: tokens → evidence, segments → two streams → posterior.

It is a Hugging Face `PreTrainedModel`, so `save_pretrained`, `from_pretrained` and the `Trainer` work as usual; what
differs is the input: texts end to end with their lengths (see `train.model.segments`), never padded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from train.model.budget import evidence_budget
from train.model.config import BetConfig
from train.model.evidence import Evidence, SufficientStatsEncoder
from train.model.leading import LeadingNgrams, leading_ngrams
from train.model.posterior import Posterior, class_logits
from train.model.segments import Tokens, read_tokens, segment
from train.model.streams import Streams, Trunk

_JOINT_WEIGHT = 0.7  # of the loss of all together beside that of the words alone; from the recipe, docs/model.md


class BetPrediction(NamedTuple):
    """What the model says about R texts; float32 unless said."""

    probabilities: Tensor  # [R, C], calibrated
    total: Tensor  # [R], nats: entropy of the probabilities
    aleatoric: Tensor  # [R], nats: what no further evidence of this kind would resolve
    epistemic: Tensor  # [R], nats: total - aleatoric; grows with evidence that training never saw
    concentration: Tensor  # [R, C], the matching Dirichlet
    order_dispersion: Tensor  # [R], standard deviation of the predicted class's probability over segment orders
    evidence_budget: Tensor  # [R] int32, orders that the answer deserves


class BetComponents(NamedTuple):
    """What the posterior combines; calibration fits on these without running the trunk again."""

    evidence: Tensor  # [R, L] log-odds
    novelty: Tensor  # [R, 2]
    trunk: Tensor  # [R, K, L] logits, one for each order


class BetForSequenceClassification(PreTrainedModel):
    """Text classifier with a posterior: evidence and trunk, joined and calibrated."""

    config_class = BetConfig
    config: BetConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: BetConfig) -> None:
        super().__init__(config)
        self.evidence = SufficientStatsEncoder(
            config.vocab_size, config.hash_slots, config.logit_columns, config.unk_token_id
        )
        self.trunk = Trunk(config)
        # How evidence, words and evidence stream are joined: learned with the streams, then part of the trunk's logits.
        self.log_scales = nn.Parameter(torch.tensor([0.0, -0.7, -0.7]))
        self.posterior = Posterior(config.logit_columns, config.noise_nodes)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """The modules initialise themselves as the recipe measured it; nothing is drawn again."""

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        labels: Tensor | None = None,
        *,
        member: Tensor | None = None,
        member_bias: Tensor | None = None,
        return_dict: bool = True,
    ) -> SequenceClassifierOutput:
        """The `Trainer`'s entry.

        Args:
            input_ids: [T] int64, texts end to end.
            lengths: [R, 1] int32, tokens of each text.
            labels: [R] int64.
            member: [T, 3, L], in training: evidence at each token by the member that never saw the text.
            member_bias: [R, L], that member's intercept.
            return_dict: accepted because callers of Hugging Face models pass it; the answer is always an output object.

        Returns:
            In training: `logits` [R, C] of evidence and streams together, averaged over the orders drawn for this step,
            and the loss -log mean_k p_k(label) of the words stream by itself plus 0.7 times that of all together:
            probabilities are averaged, not logits. In evaluation: `logits` are the log of the served probabilities and
            the loss is their negative log-likelihood. Nats.
        """
        if not self.training:
            logits = self.predict(input_ids, lengths).probabilities.log()
            loss = None if labels is None else nn.functional.nll_loss(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)
        evidence, streams, _ = self._read(input_ids, lengths, member, member_bias)
        offset = self.log_scales[0].exp() * evidence.total
        logits = _mean_over_orders(offset[:, None] + self._together(streams))
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        loss = nn.functional.nll_loss(_mean_over_orders(streams.words), labels)
        loss = loss + _JOINT_WEIGHT * nn.functional.nll_loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def components(
        self, input_ids: Tensor, lengths: Tensor, member: Tensor | None = None, member_bias: Tensor | None = None
    ) -> BetComponents:
        """Evidence, novelty and trunk logits of R texts, before calibration; for training texts by their member."""
        evidence, streams, _ = self._read(input_ids, lengths, member, member_bias)
        return BetComponents(evidence.total, evidence.novelty, self._together(streams))

    def predict(self, input_ids: Tensor, lengths: Tensor) -> BetPrediction:
        """The calibrated answer; this is what export takes into the graph.

        Args:
            input_ids: [T] int64, texts end to end; -1 at the end of a text is fill and counts as nothing.
            lengths: [R, 1] int32, tokens of each text, fill included. A text without tokens gets the prior's answer, a
                text over `config.max_tokens` is cut; neither changes its neighbours.
        """
        return self._predict(input_ids, lengths)[0]

    def explain(self, input_ids: Tensor, lengths: Tensor, k: int) -> tuple[BetPrediction, LeadingNgrams]:
        """The answer, as `predict` gives it, and the k n-grams of each text that spoke loudest for and against it."""
        prediction, evidence, tokens = self._predict(input_ids, lengths)
        scale = self.posterior.log_evidence_scale.exp()
        return prediction, leading_ngrams(evidence.terms, tokens, prediction.probabilities.argmax(-1), scale, k)

    def _predict(self, input_ids: Tensor, lengths: Tensor) -> tuple[BetPrediction, Evidence, Tokens]:
        evidence, streams, tokens = self._read(input_ids, lengths)
        p = self.posterior(evidence.total, evidence.novelty, self._together(streams))
        budget = evidence_budget(
            tokens.lengths,
            p.logit_variance,
            p.total,
            gap=self.config.budget_gap,
            epsilon=self.config.budget_epsilon,
            orders=self.config.orders,
        )
        prediction = BetPrediction(
            p.probabilities, p.total, p.aleatoric, p.epistemic, p.concentration, p.order_dispersion, budget
        )
        return prediction, evidence, tokens

    def read_tokens(self, input_ids: Tensor, lengths: Tensor) -> Tokens:
        """Which tokens count, and of which text they are."""
        return read_tokens(input_ids, lengths, max_length=self.config.max_tokens, vocab_size=self.config.vocab_size)

    def _read(
        self, input_ids: Tensor, lengths: Tensor, member: Tensor | None = None, member_bias: Tensor | None = None
    ) -> tuple[Evidence, Streams, Tokens]:
        tokens = self.read_tokens(input_ids, lengths)
        evidence = self.evidence(tokens, member, member_bias)
        segments = segment(tokens, lengths, self.config.segment_length)
        return evidence, self.trunk(segments, tokens, evidence.by_token), tokens

    def _together(self, streams: Streams) -> Tensor:
        """The trunk's logits [R, K, L]."""
        words, evidence = self.log_scales[1].exp() * streams.words, self.log_scales[2].exp() * streams.evidence
        together: Tensor = words + evidence[:, None]
        return together


def _mean_over_orders(columns: Tensor) -> Tensor:
    """Logits [R, K, L] -> log of the mean probability over orders [R, C]."""
    by_order = class_logits(columns.float()).log_softmax(-1)
    return torch.logsumexp(by_order, 1) - math.log(by_order.shape[1])
