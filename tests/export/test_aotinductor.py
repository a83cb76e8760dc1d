"""The figures of ADR 12: AOTInductor packages beside ONNX Runtime and TorchScript, one thread, same inputs.

`make test-heavy PYTEST="-s tests/export/test_aotinductor.py"` prints them; it needs a C++ compiler and some minutes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from torch import Tensor, nn

from export.graph import ServedClassifier, example_inputs
from export.onnx_format import open_session, write_onnx
from export.padded import PaddedClassifier, pad_rows
from export.torchscript import open_torchscript, write_torchscript
from train.decision import Decision
from train.model import BetConfig, BetForSequenceClassification

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++, which is not here"),
]

ROOT = Path(__file__).parents[2]
LIMIT, ROUNDS = 512, 7
SETS = [[length] * rows for rows in (1, 2, 3, 7) for length in (2, 3, 17, 256, LIMIT)] + [[5, 300, 17, LIMIT], [3, 9]]
TIMED = {
    "17": [17],
    "128": [128],
    "512": [512],
    "8 x 128": [128] * 8,
    "8 of 20-500": [20, 43, 77, 120, 180, 260, 390, 500],
}
DECISION = Decision(0.05, 0.95, 0.5, None, None, 0.95, 0.7, 100, 0.5, 0.01, 0.04, "", 1.3)
Rows = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bet() -> ServedClassifier:
    """The demo's shapes with random weights."""
    torch.manual_seed(0)
    preset = yaml.safe_load((ROOT / "train/configs/demo.yaml").read_text(encoding="utf-8"))
    config = BetConfig(vocab_size=preset["tokenizer"]["vocab_size"], num_labels=2, **preset["model"])
    model = BetForSequenceClassification(config).eval()
    with torch.no_grad():
        model.evidence.unigram.normal_(0, 0.4)
    return ServedClassifier(model, DECISION, [f"w{i}" for i in range(config.vocab_size)]).eval()


def six_layers() -> PaddedClassifier:
    """A BERT of MiniLM's shape with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    config = transformers.BertConfig(**shape, num_labels=2)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    return PaddedClassifier(model.eval(), DECISION, LIMIT, 0).eval()


def compiled(module: nn.Module, example: Rows, shapes: Any, path: Path) -> Callable[..., Any]:
    started = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
    exported = time.perf_counter()
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    print(f"\nexport {exported - started:.0f} s, compile {time.perf_counter() - exported:.0f} s", end=", ")
    runner: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return runner


@pytest.mark.parametrize("form", ["packed", "padded"])
def test_a_package_answers_as_pytorch_does_and_how_long_it_takes(form: str, tmp_path: Path) -> None:
    dim = torch.export.Dim
    rows = dim("rows", min=1, max=1 << 12)
    path = tmp_path / "model.pt2"
    if form == "packed":
        packed = bet()
        module: ServedClassifier | PaddedClassifier = packed
        total = dim("total", min=1, max=1 << 22)
        package = compiled(packed, example_inputs(), ({0: total}, {0: rows}), path)
        run: Callable[..., Any] = package
        vocabulary = packed.model.config.vocab_size
    else:
        padded = six_layers()
        module = padded
        axes = {0: rows, 1: dim("tokens", min=1, max=LIMIT)}
        package = compiled(padded.answer, padded.example(), (axes, axes), path)
        run = lambda ids, lengths: package(*pad_rows(ids, lengths, LIMIT, 0))  # noqa: E731
        vocabulary = 30522
    draw = torch.Generator().manual_seed(1)

    def inputs(sizes: list[int]) -> Rows:
        ids = torch.randint(2, vocabulary, (sum(sizes),), generator=draw)
        return ids, torch.tensor(sizes, dtype=torch.int32)[:, None]

    largest = 0.0
    with torch.inference_mode():
        for sizes in SETS:
            ids, lengths = inputs(sizes)
            wanted, given = module(ids, lengths), run(ids, lengths)
            assert torch.equal(wanted[0], given[0]), sizes
            largest = max(largest, float((wanted[1] - given[1]).abs().max()))
    assert largest <= 1e-5

    write_onnx(module, ("a", "b"), tmp_path / "model.onnx", {})
    write_torchscript(module, ("a", "b"), tmp_path / "model.pt")
    session = open_session(tmp_path / "model.onnx", {"intra_op_thread_count": "1", "inter_op_thread_count": "1"})
    traced = open_torchscript(tmp_path / "model.pt")
    megabytes = [round((tmp_path / name).stat().st_size / 1e6, 1) for name in ("model.pt2", "model.onnx", "model.pt")]
    print(f"|Δp| {largest:.0e}; pt2, onnx, pt: {megabytes} MB; processor time over ONNX Runtime's:")
    for name, sizes in TIMED.items():
        ids, lengths = inputs(sizes)
        feed = {"input_ids": ids.numpy(), "lengths": lengths.numpy()}
        calls: dict[str, Callable[[], Any]] = {
            "ONNX Runtime": lambda feed=feed: session.run(None, feed),  # type: ignore[misc]
            "pt2": lambda a=ids, b=lengths: run(a, b),  # type: ignore[misc]
            "TorchScript": lambda a=ids, b=lengths: traced(a, b),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {who: [] for who in calls}
        with torch.inference_mode():
            for turn in range(ROUNDS + 2):
                for who, call in calls.items():
                    started = time.thread_time()
                    call()
                    if turn > 1:  # the first runs of a shape allocate
                        seconds[who].append(time.thread_time() - started)
        ratios = {
            who: np.array(values) / np.array(seconds["ONNX Runtime"])
            for who, values in seconds.items()
            if who != "ONNX Runtime"
        }
        print(
            f"  {name:>12}", *(f"{who} {np.median(r):.2f} ({r.min():.2f}-{r.max():.2f})" for who, r in ratios.items())
        )
