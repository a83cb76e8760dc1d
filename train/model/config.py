"""Configuration of the Bayesian Expectation Transformer, stored as `config.json` beside its weights.

Every default is the recipe's; where a number was chosen by measurement, the reason stands beside it.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PretrainedConfig

from train.errors import ConfigError


class BetConfig(PretrainedConfig):
    """Sizes and constants of a `BetForSequenceClassification`.

    Args:
        vocab_size: entries of the WordPiece vocabulary.
        embedding_size: width of the word vectors: PPMI at first, then pretrained, then frozen.
        hidden_size: width of the encoder and the words stream.
        num_attention_heads: heads of the trunk's attention and of the read-out.
        intermediate_size: width of the feed-forward layers.
        num_hidden_layers: blocks of the encoder.
        convolution: tokens that the encoder's convolution spans; odd.
        evidence_width: width of the evidence stream, a multiple of 8.
        evidence_scale: factor that brings the log-odds of single n-grams (about .1) to the size of other inputs.
        segment_length: tokens in a segment; attention stays inside one, so cost grows linearly with tokens.
        orders: segment orders that the served read-out averages over.
        training_orders: orders drawn anew for every training step (the first is always the text's own).
        max_tokens: tokens of a text that the model reads.
        head_tokens: of these, how many are taken from the beginning when a text is longer; the rest come from its end.
        hash_slots: slots of each n-gram table (n = 2, 3); a power of two is not needed.
        hidden_dropout: dropout inside the trunk.
        token_dropout: mean share of tokens replaced by [UNK] in training; it differs from text to text.
        rotary_base: base of the rotary frequencies. Segments are short, so the usual 10,000 would waste half of them.
        noise_nodes: nodes at which the logit's normal distribution is integrated; two classes use Gauss-Hermite
            quadrature (exact for smooth functions at nine), more classes at least eight times as many quasi-random
            points.
        pretrained: configuration of a Hugging Face encoder that stands in for ours (`train.model.pretrained`); None for
            ours. `hidden_size` is then its width, and `opening_token_id` the token that opens each segment.
        budget_gap, budget_epsilon: constants of the evidence budget (see `train.model.budget`).
        order_seed: seed of the fixed segment orders.

    Raises:
        ConfigError: listing every value that cannot work.
    """

    model_type = "bet"

    def __init__(
        self,
        *,
        vocab_size: int = 30_000,
        embedding_size: int = 128,
        hidden_size: int = 64,
        num_attention_heads: int = 4,
        intermediate_size: int = 128,
        num_hidden_layers: int = 1,
        convolution: int = 3,
        evidence_width: int = 32,
        evidence_scale: float = 8.0,
        segment_length: int = 32,
        orders: int = 8,
        training_orders: int = 2,
        max_tokens: int = 512,
        head_tokens: int = 128,
        hash_slots: int = 1 << 18,
        hidden_dropout: float = 0.2,
        token_dropout: float = 0.2,
        rotary_base: float = 1000.0,
        noise_nodes: int = 9,
        budget_gap: float = 1.0,
        budget_epsilon: float = 0.05,
        order_seed: int = 0,
        pad_token_id: int = 0,
        unk_token_id: int = 1,
        opening_token_id: int = 0,
        pretrained: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.convolution = convolution
        self.evidence_width = evidence_width
        self.evidence_scale = evidence_scale
        self.segment_length = segment_length
        self.orders = orders
        self.training_orders = training_orders
        self.max_tokens = max_tokens
        self.head_tokens = head_tokens
        self.hash_slots = hash_slots
        self.hidden_dropout = hidden_dropout
        self.token_dropout = token_dropout
        self.rotary_base = rotary_base
        self.noise_nodes = noise_nodes
        self.budget_gap = budget_gap
        self.budget_epsilon = budget_epsilon
        self.order_seed = order_seed
        self.pad_token_id = pad_token_id
        self.unk_token_id = unk_token_id
        self.opening_token_id = opening_token_id
        self.pretrained = pretrained
        super().__init__(**kwargs)
        faults = self._faults()
        if faults:
            raise ConfigError("the model configuration cannot work: " + "; ".join(faults))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        names = cast("dict[int, str]", self.id2label)  # transformers turns the keys of JSON back into integers
        return tuple(names[i] for i in range(len(names)))

    @property
    def logit_columns(self) -> int:
        """Columns of a logit: one (the log-odds) for two classes, else one for each class."""
        return 1 if len(self.label_names) == 2 else len(self.label_names)

    @property
    def max_segments(self) -> int:
        """Most segments of one text."""
        return -(-self.max_tokens // self.segment_length)

    def _faults(self) -> list[str]:
        faults = [
            f"{name} = {getattr(self, name)!r}, must be at least 1"
            for name in (
                "vocab_size",
                "embedding_size",
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "convolution",
                "evidence_width",
                "segment_length",
                "orders",
                "training_orders",
                "max_tokens",
                "hash_slots",
                "noise_nodes",
            )
            if getattr(self, name) < 1
        ]
        if len(self.label_names) < 2:
            faults.append(f"{len(self.label_names)} classes, must be at least 2")
        if not faults and self.hidden_size % (2 * self.num_attention_heads):
            faults.append(
                f"hidden_size = {self.hidden_size} is not a multiple of twice num_attention_heads = "
                f"{self.num_attention_heads} (rotary embedding turns pairs)"
            )
        if not self.convolution % 2:
            faults.append(f"convolution = {self.convolution} is even: it could not be centred on a token")
        if self.evidence_width % 8:
            faults.append(f"evidence_width = {self.evidence_width} is not a multiple of 8, the width of its heads")
        if not 0 <= self.head_tokens <= self.max_tokens:
            faults.append(f"head_tokens = {self.head_tokens} is not between 0 and max_tokens = {self.max_tokens}")
        for name in ("hidden_dropout", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name} = {getattr(self, name)!r} is not in [0, 1)")
        return faults
