"""What the served model offers, read from its configuration: outputs, label names, limits and error budgets.

The project's ensembles carry their label names and byte limit as config parameters and declare only the outputs that
they can honestly give, so the client asks for those and leaves the other fields of a `Prediction` None.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bet_client.errors import IncompatibleModelError, InvalidInputError
from bet_client.types import Budget

INPUT = "text"
SHAPES = (("label", "probabilities"), ("probabilities", "assigned"), ("value",))
"""What an answer is made of at least: one label, any number of labels, or a number."""
OPTIONAL = (
    *("total", "aleatoric", "epistemic", "review", "reason", "prediction_set", "undecided", "prediction_interval"),
    *("tokens", "truncated"),
)
EVIDENCE = ("evidence_ngrams", "evidence_nats")
DIAGNOSTICS = ("concentration", "order_dispersion", "evidence_budget", *EVIDENCE)

MAX_REQUEST_BYTES = 4 * 2**20
"""UTF-8 bytes of text in one request, on both protocols; a single text above it is refused without being sent."""


@dataclass(frozen=True)
class ModelContract:
    """The part of a model's configuration that a client needs."""

    model: str
    labels: tuple[str, ...]
    outputs: frozenset[str]
    max_rows: int
    max_text_bytes: int

    def wanted(self, *, diagnostics: bool) -> tuple[str, ...]:
        """The outputs to ask for: those that fill a `Prediction` and that the model has, no more."""
        names = (*itertools.chain(*SHAPES), *OPTIONAL, *(DIAGNOSTICS if diagnostics else ()))
        return tuple(name for name in dict.fromkeys(names) if name in self.outputs)

    def check_length(self, raw: bytes) -> None:
        """Refuse a text that the model would refuse.

        Raises:
            InvalidInputError: if the text has more UTF-8 bytes than the model takes.
        """
        if len(raw) > self.max_text_bytes:
            raise InvalidInputError(
                f"text has {len(raw):,} bytes in UTF-8, and model {self.model!r} takes at most "
                f"{self.max_text_bytes:,}; send a part of it"
            )


def read_contract(model: str, config: Mapping[str, Any]) -> ModelContract:
    """Read a model configuration, as Triton gives it in JSON.

    Raises:
        IncompatibleModelError: if the model is not a text classifier of this service.
    """
    try:
        inputs = [tensor["name"] for tensor in config["input"]]
        outputs = frozenset(tensor["name"] for tensor in config["output"])
        max_rows = int(config.get("max_batch_size", 0))
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        labels = json.loads(parameters["labels"]) if "labels" in parameters else None
        max_text_bytes = int(parameters.get("max_text_bytes", MAX_REQUEST_BYTES))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IncompatibleModelError(f"the configuration of model {model!r} cannot be read: {error!r}") from error
    faults = []
    if inputs != [INPUT]:
        faults.append(f"its inputs are {inputs}, not [{INPUT!r}]")
    nearest = max(SHAPES, key=lambda shape: len(outputs.intersection(shape)) / len(shape))
    if missing := [name for name in nearest if name not in outputs]:
        faults.append(f"it has no output {' and no output '.join(map(repr, missing))}")
    if max_rows < 1:
        faults.append("it takes no batches (max_batch_size 0)")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        faults.append(f"its parameter 'labels' is {parameters.get('labels')!r}, not a JSON list of names")
    if faults or not isinstance(labels, list):
        raise IncompatibleModelError(
            f"model {model!r} is not a text classifier that this client can call: {'; '.join(faults)}"
        )
    return ModelContract(model, tuple(labels), outputs, max_rows, min(max_text_bytes, MAX_REQUEST_BYTES))


def read_budgets(model: str, config: Mapping[str, Any]) -> list[Budget]:
    """The error budgets in a model configuration, from strict to lax; empty where the model proves none.

    Raises:
        IncompatibleModelError: if they cannot be read.
    """
    try:
        stored = config.get("parameters", {}).get("budgets", {"string_value": "[]"})["string_value"]
        return [Budget(**{field.name: entry[field.name] for field in fields(Budget)}) for entry in json.loads(stored)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IncompatibleModelError(f"the parameter 'budgets' of model {model!r} cannot be read: {error!r}") from error
