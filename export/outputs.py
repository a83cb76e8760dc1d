"""The outputs of a served classifier: names, types and order, in one place.

The order is the order of the graph's outputs, of the TorchScript tuple and of the model configuration, since Triton's
PyTorch backend matches outputs by their place in the configuration alone. Meanings are in the README, "What an answer
says".
"""

from __future__ import annotations

from dataclasses import dataclass

LEADING = 8  # n-grams of a text that are named as having spoken loudest for and against the answer
PIECES = 3  # pieces of a named n-gram; a shorter one has empty ones at its end

REASONS = ("", "uncertain", "unfamiliar")
"""Why a text goes to review; the graph indexes this tuple."""


@dataclass(frozen=True)
class Output:
    """One output of the classifier, a row for each text."""

    name: str
    data_type: str  # of Triton's model configuration
    per_class: bool = False  # [rows, classes], else [rows, width]
    diagnostic: bool = False  # clients ask for it only on demand
    width: int = 1

    def columns(self, classes: int) -> int:
        """Values of one row."""
        return classes if self.per_class else self.width


CLASSIFIER_OUTPUTS = (
    Output("label", "TYPE_STRING"),
    Output("probabilities", "TYPE_FP32", per_class=True),
    Output("total", "TYPE_FP32"),
    Output("aleatoric", "TYPE_FP32"),
    Output("epistemic", "TYPE_FP32"),
    Output("review", "TYPE_BOOL"),
    Output("reason", "TYPE_STRING"),
    Output("prediction_set", "TYPE_BOOL", per_class=True),
    Output("concentration", "TYPE_FP32", per_class=True, diagnostic=True),
    Output("order_dispersion", "TYPE_FP32", diagnostic=True),
    Output("evidence_budget", "TYPE_INT32", diagnostic=True),
    Output("evidence_ngrams", "TYPE_STRING", diagnostic=True, width=LEADING * PIECES),
    Output("evidence_nats", "TYPE_FP32", diagnostic=True, width=LEADING),
)
MULTI_LABEL_OUTPUTS = (
    Output("probabilities", "TYPE_FP32", per_class=True),
    Output("assigned", "TYPE_BOOL", per_class=True),
    Output("total", "TYPE_FP32"),
    Output("undecided", "TYPE_BOOL", per_class=True),
    Output("review", "TYPE_BOOL"),
    Output("reason", "TYPE_STRING"),
)
REGRESSION_OUTPUTS = (Output("value", "TYPE_FP32"), Output("prediction_interval", "TYPE_FP32", width=2))
TOKENIZER_OUTPUTS = (Output("tokens", "TYPE_INT32"), Output("truncated", "TYPE_BOOL"))

STRINGS = {"label": "label_index", "reason": "reason_index", "evidence_ngrams": "piece_index"}
"""Outputs that PyTorch cannot compute: the traced classifier returns the index instead."""

WIDE = {
    output.name
    for output in (*CLASSIFIER_OUTPUTS, *MULTI_LABEL_OUTPUTS, *REGRESSION_OUTPUTS)
    if output.per_class or output.width > 1
}
"""Outputs that have more than one value of a row."""


@dataclass(frozen=True)
class Kind:
    """What one kind of model can honestly say, and how it executes several rows; a name keeps one kind."""

    name: str
    outputs: tuple[Output, ...]
    padded: bool  # rows are padded to the longest, else packed without padding

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of what the module in PyTorch returns, in order."""
        return tuple(STRINGS.get(output.name, output.name) for output in self.outputs)


def _only(*names: str) -> tuple[Output, ...]:
    return tuple(output for output in CLASSIFIER_OUTPUTS if output.name in names)


BET = Kind("bet", CLASSIFIER_OUTPUTS, padded=False)
# A softmax has no posterior: what its total uncertainty consists of, it cannot say.
SOFTMAX = Kind("softmax", _only("label", "probabilities", "total", "review", "reason", "prediction_set"), padded=True)
# One sigmoid of each label: any number of them may be right, so there is no one label, and no set of classes.
MULTI_LABEL = Kind("multi_label", MULTI_LABEL_OUTPUTS, padded=True)
REGRESSION = Kind("regression", REGRESSION_OUTPUTS, padded=True)
KINDS = {kind.name: kind for kind in (BET, SOFTMAX, MULTI_LABEL, REGRESSION)}
