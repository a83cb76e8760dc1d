"""The Bayesian Expectation Transformer, read top to bottom: tokens → segments → trunk, evidence → posterior.

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

from train.model.attention import LocalBlock, MartingaleAwareAttention
from train.model.budget import evidence_budget
from train.model.config import BetConfig
from train.model.evidence import SufficientStatsEncoder
from train.model.posterior import Posterior, class_logits
from train.model.segments import Segments, Tokens, read_tokens, segment, sum_by_row

_PROJECTED, _COUNTED = 16, 2  # moments of 16 projections and 2 soft counts of the hidden states


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


class Trunk(nn.Module):
    """Word vectors, local blocks, and a logit a segment order."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.embedding.weight.requires_grad_(False)  # trained on this little text they overfit
        self.project_in = nn.Linear(config.embedding_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(
            LocalBlock(
                width, config.num_attention_heads, config.intermediate_size, config.hidden_dropout, config.rotary_base
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm, self.readout_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.readout = MartingaleAwareAttention(
            width=width,
            heads=config.num_attention_heads,
            segment_length=config.segment_length,
            orders=config.orders,
            segments=config.max_segments,
            rotary_base=config.rotary_base,
            seed=config.order_seed,
        )
        self.moments, self.counts = nn.Linear(width, _PROJECTED), nn.Linear(width, _COUNTED)
        self.from_readout = nn.Linear(width, config.logit_columns)
        self.from_statistics = nn.Linear(2 * _PROJECTED + _COUNTED + 1, config.logit_columns)
        nn.init.zeros_(self.from_readout.weight)  # the first answer is the prior
        nn.init.zeros_(self.from_statistics.weight)

    def forward(self, segments: Segments, lengths: Tensor) -> Tensor:
        """Segments of R texts with their lengths [R] -> logits [R, K, L]."""
        ids, ranks = segments.ids, None
        if self.training:
            dropped = (torch.rand(ids.shape, device=ids.device) < self.config.token_dropout) & segments.mask
            ids = torch.where(dropped, self.config.unk_token_id, ids)
            ranks = self.readout.random_ranks(self.config.training_orders)
        x = self.project_in(self.dropout(self.embedding(ids)))
        for block in self.blocks:
            x = block(x, segments.mask)
        x = self.norm(x)
        by_order = self.from_readout(self.dropout(self.readout_norm(self.readout(x, segments, ranks))))
        logits: Tensor = by_order + self.from_statistics(self._statistics(x, segments, lengths))[:, None]
        return logits

    def _statistics(self, x: Tensor, segments: Segments, lengths: Tensor) -> Tensor:
        """Masked mean and deviation of projections, soft counts, and length: invariant to the order of segments."""
        rows = lengths.shape[0]
        mask = segments.mask[..., None].to(x.dtype)
        n = lengths.to(x.dtype).clamp(min=1)[:, None]
        z = self.moments(x)
        mean = sum_by_row((z * mask).sum(1), segments.row, rows) / n
        square = ((z - mean[segments.row][:, None]) ** 2 * mask).sum(1)
        deviation = (sum_by_row(square, segments.row, rows) / n + 1e-6).sqrt()
        counts = sum_by_row((nn.functional.softplus(self.counts(x)) * mask).sum(1), segments.row, rows)
        return torch.cat([mean, deviation, torch.log1p(counts), torch.log(n) / 2 - 2.5], -1)


class BetForSequenceClassification(PreTrainedModel):
    """Text classifier with a posterior: evidence and trunk, joined and calibrated."""

    config_class = BetConfig
    config: BetConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: BetConfig) -> None:
        super().__init__(config)
        self.evidence = SufficientStatsEncoder(config.vocab_size, config.hash_slots, config.logit_columns)
        self.trunk = Trunk(config)
        self.posterior = Posterior(config.logit_columns, config.noise_nodes)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """The modules initialise themselves as the recipe measured it; nothing is drawn again."""

    def forward(
        self, input_ids: Tensor, lengths: Tensor, labels: Tensor | None = None, return_dict: bool = True
    ) -> SequenceClassifierOutput:
        """The `Trainer`'s entry.

        Args:
            input_ids: [T] int64, texts end to end.
            lengths: [R, 1] int32, tokens of each text.
            labels: [R] int64.
            return_dict: accepted because callers of Hugging Face models pass it; the answer is always an output object.

        Returns:
            In training: `logits` [R, C] of the trunk, averaged over the orders drawn for this step, and the loss
            -log mean_k p_k(label): probabilities are averaged, not logits. In evaluation: `logits` are the log of the
            served probabilities and the loss is their negative log-likelihood. Nats.
        """
        if not self.training:
            logits = self.predict(input_ids, lengths).probabilities.log()
            loss = None if labels is None else nn.functional.nll_loss(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)
        tokens, segments = self._read(input_ids, lengths)
        by_order = class_logits(self.trunk(segments, tokens.lengths)).log_softmax(-1)  # [R, K, C]
        logits = torch.logsumexp(by_order, 1) - math.log(by_order.shape[1])
        loss = None if labels is None else nn.functional.nll_loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def components(self, input_ids: Tensor, lengths: Tensor) -> BetComponents:
        """Evidence, novelty and trunk logits of R texts, before calibration."""
        tokens, segments = self._read(input_ids, lengths)
        evidence, novelty = self.evidence(tokens)
        return BetComponents(evidence, novelty, self.trunk(segments, tokens.lengths))

    def predict(self, input_ids: Tensor, lengths: Tensor) -> BetPrediction:
        """The calibrated answer; this is what export takes into the graph.

        Args:
            input_ids: [T] int64, texts end to end; -1 at the end of a text is fill and counts as nothing.
            lengths: [R, 1] int32, tokens of each text, fill included. A text without tokens gets the prior's answer, a
                text over `config.max_tokens` is cut; neither changes its neighbours.
        """
        tokens, segments = self._read(input_ids, lengths)
        evidence, novelty = self.evidence(tokens)
        p = self.posterior(evidence, novelty, self.trunk(segments, tokens.lengths))
        budget = evidence_budget(
            tokens.lengths,
            p.logit_variance,
            p.total,
            gap=self.config.budget_gap,
            epsilon=self.config.budget_epsilon,
            orders=self.config.orders,
        )
        return BetPrediction(
            p.probabilities, p.total, p.aleatoric, p.epistemic, p.concentration, p.order_dispersion, budget
        )

    def _read(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tokens, Segments]:
        tokens = read_tokens(input_ids, lengths, max_length=self.config.max_tokens, vocab_size=self.config.vocab_size)
        return tokens, segment(tokens, lengths, self.config.segment_length)
