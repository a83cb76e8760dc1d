"""An exported version without a server: its tokenizer and its graph in this very process.

What a team would write around `model.onnx` itself. It stands beneath the applications of the peers and the in-process
ceiling, which run in an environment of their own and import nothing of this project, and it gives the right answers
that every system is held against. A text is encoded, cut and fed as the server's tokenizer step does it; the golden ids
of the manifest say whether it really is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

FILL = -1  # fills the shorter rows of a rectangular request; no text can produce it, and the graph ignores it
_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Answer(NamedTuple):
    """The most probable label of a text, and the probabilities in class order."""

    label: str
    probabilities: list[float]


class Classifier:
    """The files of one version in `folder`: model.onnx, tokenizer.json and manifest.json.

    Args:
        threads: of ONNX Runtime within an operator, the calling one included; they wait as they do by default.

    Raises:
        ValueError: if the tokenizer gives other ids than at export.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cut = manifest["tokenizer"]
        self.labels: list[str] = manifest["labels"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a special token in a user's text is plain text
        self._special_tokens: bool = cut.get("special_tokens", False)
        self._limit: int = cut["max_length"]
        self._head: int = cut["head_length"]
        self._no_token: int = cut["no_token_id"]
        for case in cut["golden"]:
            if self.encode([case["text"]])[0].tolist() != case["ids"]:
                raise ValueError(f"the tokenizer in {folder} gives other ids than at export for {case['text'][:40]!r}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _LEVELS[manifest.get("graph_level", "all")]
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Ids of each text, int64 [1 … max_length]; a longer one keeps its first and its last tokens."""
        tail = self._limit - self._head
        rows = []
        for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=self._special_tokens):
            ids = encoding.ids or [self._no_token]
            cut = ids if len(ids) <= self._limit else ids[: self._head] + ids[len(ids) - tail :]
            rows.append(np.array(cut, dtype=np.int64))
        return rows

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """The answers to texts that are executed together, their tokens end to end and none filled up."""
        rows = self.encode(texts)
        labels, probabilities = self.execute(rows[0] if len(rows) == 1 else np.concatenate(rows), [*map(len, rows)])
        return [Answer(label, row) for label, row in zip(labels, probabilities.tolist(), strict=True)]

    def execute(self, input_ids: NDArray[np.int64], lengths: Sequence[int]) -> tuple[list[str], NDArray[np.float32]]:
        """One execution: ids [tokens] of rows with these lengths -> labels, and probabilities [rows, classes]."""
        feed = {"input_ids": input_ids, "lengths": np.array(lengths, dtype=np.int32)[:, None]}
        labels, probabilities = self.session.run(["label", "probabilities"], feed)
        return labels[:, 0].tolist(), probabilities
