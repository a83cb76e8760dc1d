"""What is right: the checkpoint itself in PyTorch, each text alone, without padding and without a server."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from benchmarks.errors import TextsError, UsageError
from serve.repository import read_repository


@dataclass(frozen=True)
class Exported:
    """What the manifest of a served version says, as far as PyTorch must do the same.

    Attributes:
        temperature: by which logits are divided.
        max_length, head_length: a text of more tokens keeps its first `head_length` and its last ones.
    """

    temperature: float
    max_length: int
    head_length: int

    @classmethod
    def read(cls, repository: Path, model: str) -> Exported:
        """Of the version that the ensemble `model` pins.

        Raises:
            UsageError: if that version is no calibrated softmax, as an export of a Hugging Face folder is.
            RepositoryError: of `serve`, if there is no such ensemble or version.
        """
        content = read_repository(repository)
        content.servable([model])
        for step in content.models[model].steps:
            path = content.models[step.model].folder / str(step.version) / "manifest.json"
            if path.exists():
                manifest = json.loads(path.read_text(encoding="utf-8"))
                temperature = manifest.get("calibration", {}).get("temperature")
                if temperature is not None:
                    cut = manifest["tokenizer"]
                    return cls(float(temperature), cut["max_length"], cut["head_length"])
        raise UsageError(
            f"{model!r} in {repository} has no temperature; compare an export of the Hugging Face folder, made by "
            f"`python -m export add DIR --name {model}`"
        )


class Reference:
    """A Hugging Face folder with a single-label head.

    Attributes:
        labels: in class order.

    Raises:
        UsageError: if the folder holds no such model.
    """

    def __init__(self, checkpoint: Path, exported: Exported) -> None:
        if not (checkpoint / "config.json").is_file() or not (checkpoint / "tokenizer.json").is_file():
            raise UsageError(f"{checkpoint} holds no config.json and tokenizer.json; give a Hugging Face folder")
        self._model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
        config = self._model.config
        if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
            raise UsageError(f"{checkpoint} is not a single-label classifier, and nothing else is compared yet")
        self.labels = tuple(config.id2label[i] for i in range(config.num_labels))
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._exported = exported

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts, classes], each text cut as the served version cuts it."""
        rows, limit, head = [], self._exported.max_length, self._exported.head_length
        with torch.inference_mode():
            for text in texts:
                ids = self.tokenizer.encode(text).ids
                if len(ids) > limit:
                    ids = ids[:head] + ids[len(ids) - (limit - head) :]
                rows.append(self._model(input_ids=torch.tensor([ids])).logits[0].double().numpy())
        return np.stack(rows)


def read_labelled(path: Path, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """Texts and class indices of a CSV with the columns `text` and `label`, labels by name or number.

    Raises:
        TextsError: if it cannot be read, or a label is unknown.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise TextsError(f"{path} cannot be read as CSV with the columns text and label ({error!r})") from error
    index = {str(i): i for i in range(len(labels))} | {name: i for i, name in enumerate(labels)}
    unknown = [label for _, label in rows if label not in index]
    if unknown or not rows:
        raise TextsError(f"{path} has {len(rows)} rows, {len(unknown)} with a label that is not {', '.join(labels)}")
    return [text for text, _ in rows], [index[label] for _, label in rows]
