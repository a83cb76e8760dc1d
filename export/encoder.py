"""Texts to token ids as the served tokenizer step does it: what a checkpoint says about its tokenizer, in one object.

The step itself (`model_repository/bet_tokenizer/model.py`) runs in Triton's process and imports nothing of ours; it
reads the numbers below from the manifest, and its golden ids are made here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer without stored padding and truncation, and the cut of texts that are too long.

    Such a text keeps its first `head_length` ids and its last `max_length - head_length`. That is BET's head and tail,
    and with the closing special tokens alone as tail it is the usual truncation on the right, with the opening ones
    alone as head that on the left.
    """

    tokenizer: Tokenizer
    max_length: int  # most ids of a text
    head_length: int
    special_tokens: bool  # whether the tokenizer's own ([CLS] … [SEP]) are put around each text
    no_token_id: int  # the one id of a text that yields none

    @property
    def added(self) -> int:
        """Special tokens around a text."""
        return int(self.tokenizer.num_special_tokens_to_add(False)) if self.special_tokens else 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, int64 [1 … max_length]."""
        rows = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=self.special_tokens)
        return [self._cut(row.ids or [self.no_token_id]) for row in rows]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Ids of each text before the cut, special tokens included."""
        rows = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=self.special_tokens)
        return [max(1, len(row.ids)) for row in rows]

    def unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many tokens of the texts stand for what the vocabulary does not hold, and how many there are in all."""
        model: dict[str, Any] = json.loads(self.tokenizer.to_str())["model"]
        # Of Unigram the number is stored, of the others the token; byte-level ones have none.
        unknown: Any = model.get("unk_id", self.tokenizer.token_to_id(model.get("unk_token") or ""))
        rows: list[list[int]] = [
            row.ids for row in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        return sum(ids.count(unknown) for ids in rows), sum(map(len, rows))

    def _cut(self, ids: list[int]) -> Ids:
        if len(ids) > self.max_length:
            ids = ids[: self.head_length] + ids[len(ids) - (self.max_length - self.head_length) :]
        return np.array(ids, dtype=np.int64)
