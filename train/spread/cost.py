"""What an answer costs: each way as one exported graph, run by ONNX Runtime on one thread."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from train.model.posterior import Posterior
from train.prediction import Ids
from train.spread.plain import PlainTransformer

_ROUNDS, _A_ROUND = 15, 20
_OPSET = 18


class Answering(nn.Module):
    """A way to a spread with its fitted posterior: what would be served."""

    def __init__(self, spread: nn.Module, posterior: Posterior) -> None:
        super().__init__()
        self.spread, self.posterior = spread, posterior

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Packed texts -> probabilities [R, C], total [R], epistemic [R]; a plain transformer takes ids and mask."""
        if isinstance(self.spread, PlainTransformer):
            logits = self.spread(input_ids, lengths)
            p = self.posterior(torch.zeros_like(logits), torch.zeros(len(logits), 2), logits[:, None])
        else:
            p = self.posterior(*self.spread.components(input_ids, lengths))  # type: ignore[operator]
        return p.probabilities, p.total, p.epistemic


def milliseconds(ways: Mapping[str, Answering], texts: Mapping[str, Ids]) -> dict[str, dict[str, float]]:
    """Median time of one answer in milliseconds, by way and text; the ways take turns, so that noise hits all alike.

    Args:
        ways: what to export.
        texts: name -> token ids of one text.
    """
    with TemporaryDirectory() as folder:
        sessions = {
            name: open_session(way, Path(folder) / f"{index}.onnx") for index, (name, way) in enumerate(ways.items())
        }
    found: dict[str, dict[str, float]] = {name: {} for name in ways}
    for text, ids in texts.items():
        feeds = {name: feed_of(way, ids) for name, way in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for name, session in sessions.items():
            session.run(None, feeds[name])
        for _ in range(_ROUNDS):
            for name, session in sessions.items():
                started = time.perf_counter()
                for _ in range(_A_ROUND):
                    session.run(None, feeds[name])
                times[name].append((time.perf_counter() - started) / _A_ROUND * 1000)
        for name in ways:
            found[name][text] = float(np.median(times[name]))
    return found


def open_session(way: Answering, path: Path) -> onnxruntime.InferenceSession:
    """Export to `path`, for any number of tokens (of one text if padded), and open it on one thread."""
    plain = isinstance(way.spread, PlainTransformer)
    limit = int(way.spread.config.max_tokens)  # type: ignore[union-attr,arg-type]
    total, rows = torch.export.Dim("total", min=2, max=1 << 16), torch.export.Dim("rows", min=1, max=1 << 12)
    if plain:
        example: tuple[Any, ...] = (torch.ones(1, 40, dtype=torch.int64), torch.ones(1, 40, dtype=torch.bool))
        longest = torch.export.Dim("longest", min=2, max=limit)
        shapes: Any = ({1: longest}, {1: longest})
    else:
        lengths = torch.tensor([[40], [30], [10]], dtype=torch.int32)
        example = (torch.arange(80, dtype=torch.int64) + 5, lengths)
        shapes = ({0: total}, {0: rows})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            way.eval(),
            example,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["ids", "mask"] if plain else ["input_ids", "lengths"],
            output_names=["probabilities", "total", "epistemic"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed_of(way: Answering, ids: Ids) -> dict[str, Any]:
    """One text as that graph takes it."""
    if isinstance(way.spread, PlainTransformer):
        return {"ids": ids[None], "mask": np.ones((1, len(ids)), bool)}
    return {"input_ids": ids, "lengths": np.array([[len(ids)]], np.int32)}
