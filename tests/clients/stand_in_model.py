"""A Python-backend model with the ensemble's inputs and outputs and answers that a test can compute itself.

It runs inside Triton, copied into the tests' repository under several names; each name's config decides which outputs
it declares. What a text does: "boom" is refused, "broken" fails, "slow 0.5" takes half a second, "outputs?"
answers with the outputs that were asked for, "rows?" with the number of rows in its request, and "held FOLDER" waits
for a test: it opens the named pipe `entered` of that folder, then `released`, and each opens once the test does too.
"""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

LABELS = ("negative", "positive")
OUTPUTS = (
    *("label", "probabilities", "total", "aleatoric", "epistemic", "review", "reason", "prediction_set"),
    *("tokens", "truncated", "concentration", "order_dispersion", "evidence_budget"),
    *("evidence_ngrams", "evidence_nats"),
)


class Refused(Exception):
    """A text that the service does not take."""


def answer(raw: bytes) -> dict[str, NDArray[Any]]:
    """One row's value for each output of the serving contract."""
    text = raw.decode("utf-8")
    if not text.strip() or text == "boom":
        raise Refused(f"text {text!r} is refused")
    if text == "broken":
        raise RuntimeError("the model broke")
    if text.startswith("slow "):
        time.sleep(float(text.split()[1]))
    if text.startswith("held "):
        folder = Path(text.removeprefix("held "))
        (folder / "entered").open("wb").close()
        (folder / "released").open("rb").close()
    seed = zlib.crc32(raw)
    positive = (seed % 999 + 0.5) / 1000
    probabilities = np.array([1 - positive, positive], np.float32)
    label = LABELS[int(probabilities.argmax())]
    review = text.startswith("unsure")
    return {
        "label": np.array([label.encode()], np.object_),
        "probabilities": probabilities,
        "total": np.array([0.5], np.float32),
        "aleatoric": np.array([0.375], np.float32),
        "epistemic": np.array([0.125], np.float32),
        "review": np.array([review]),
        "reason": np.array([b"uncertain" if review else b""], np.object_),
        "prediction_set": probabilities >= 0.05,
        "tokens": np.array([len(raw)], np.int32),
        "truncated": np.array([len(raw) > 1000]),
        "concentration": probabilities * 10,
        "order_dispersion": np.array([0.25], np.float32),
        "evidence_budget": np.array([seed & 0x7FFF], np.int32),
        "evidence_ngrams": np.array(["très".encode(), b" good", b"##bad", b"", b"", b""], np.object_),
        "evidence_nats": np.array([1.5, -0.25, 0], np.float32),
    }


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Learn which outputs this model's config declares."""
        config = json.loads(args["model_config"])
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        answers = []
        for number, raw in enumerate(rows, start=1):
            try:
                answers.append(answer(raw))
            except Refused as error:
                message = f"row {number}: {error}" if len(rows) > 1 else str(error)
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
            except RuntimeError as error:
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL))
        asked = request.requested_output_names()
        for raw, row in zip(rows, answers, strict=True):
            if raw == b"outputs?":
                row["reason"] = np.array([" ".join(name for name in OUTPUTS if name in asked).encode()], np.object_)
            elif raw.startswith(b"rows?"):
                row["reason"] = np.array([str(len(rows)).encode()], np.object_)
        wanted = [name for name in self.outputs if name in asked]
        tensors = [pb_utils.Tensor(name, np.stack([row[name] for row in answers])) for name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)
