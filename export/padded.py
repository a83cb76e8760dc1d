"""The module that is exported for a Hugging Face classifier: padded inside, ragged outside.

The dynamic batcher hands over all rows end to end; the model wants them side by side, padded to the longest. Only the
padded half is traced or exported: to ONNX the padding is added as nodes (`export.padded_onnx`), to TorchScript as the
script of `pad_rows`. A trace of the whole would keep the example's lengths as constants, without an error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.decisions import AnyDecision
from export.heads import Head, head_of
from export.outputs import Kind


def pad_rows(input_ids: Tensor, lengths: Tensor, limit: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows end to end -> rows side by side.

    A row beyond the limit loses its end, and one without a token becomes a single pad token, both without harm to the
    neighbours: rows start where the lengths as given say, and lengths are cut only afterwards.

    Args:
        input_ids: [T] int64, shorter rows of a request filled up with -1.
        lengths: [R, 1] int32, tokens of each row, fill included.

    Returns:
        ids int64 [R, m] and attention mask int64 [R, m], for the longest row of m tokens.
    """
    sizes = lengths.reshape(-1).to(torch.int64)
    starts = sizes.cumsum(0) - sizes
    kept = sizes.clamp(max=limit)
    longest = max(1, int(kept.max().item()))
    positions = torch.arange(longest, dtype=torch.int64, device=input_ids.device)[None]
    # One token of fill (-1, train.model.segments.FILL) behind the last row spares a gather beyond the end.
    ids = torch.cat([input_ids, torch.full((1,), -1, dtype=torch.int64, device=input_ids.device)])
    taken = ids[(starts[:, None] + positions).clamp(max=input_ids.shape[0])]
    there = (positions < kept[:, None]) & (taken >= 0)
    padded = torch.where(there, taken, torch.full_like(taken, pad_id))
    # No row is masked from end to end: some attention would divide nothing by nothing.
    return padded, (there | (positions == 0)).to(torch.int64)


class PaddedAnswer(nn.Module):
    """Padded rows -> the decision on them, as the tensors that the kind of the head names."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """input_ids [R, m] int64, attention_mask [R, m] int64 (0 where a row is padded) -> the tensors of the head."""
        return self.head(self.model(input_ids=input_ids, attention_mask=attention_mask).logits)  # type: ignore[no-any-return]


class PaddedClassifier(nn.Module):
    """Ragged rows -> the decision on them."""

    def __init__(self, model: nn.Module, decision: AnyDecision, limit: int, pad_id: int) -> None:
        super().__init__()
        self.answer = PaddedAnswer(model, head_of(decision))
        self.limit = limit
        self.pad_id = pad_id

    @property
    def kind(self) -> Kind:
        """Which tensors come out."""
        return self.answer.head.kind

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """input_ids [T] int64, lengths [R, 1] int32 -> the tensors of the head."""
        return self.answer(*pad_rows(input_ids, lengths, self.limit, self.pad_id))  # type: ignore[no-any-return]

    def example(self) -> tuple[Tensor, Tensor]:
        """Padded rows to trace with: three, one of them shorter. Any other shape must do as well."""
        longest = min(11, self.limit)
        lengths = torch.tensor([[longest], [max(1, longest // 2)], [longest]], dtype=torch.int32)
        return pad_rows(torch.arange(int(lengths.sum())) % 3, lengths, self.limit, self.pad_id)
