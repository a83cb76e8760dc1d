"""Presets: every number of a training run, read from YAML and checked at once.

`train/configs/<name>.yaml` holds the numbers with their reasons; this module holds their types. All unknown, missing or
impossible keys are reported in one error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from train.errors import ConfigError

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TokenizerOptions:
    """`vocab_size`: largest vocabulary, special tokens included."""

    vocab_size: int


@dataclass(frozen=True)
class EvidenceOptions:
    """Members of the n-gram evidence (`train.evidence`)."""

    folds: int
    inverse_regularisation: float
    crop_weight: float


@dataclass(frozen=True)
class OptimizerOptions:
    """What the Hugging Face `Trainer` is given in both phases.

    Attributes:
        epochs: over the training part; may be a fraction.
        batch_size: texts of a step.
        window: the longest stretch of a text that a step reads, in tokens.
        learning_rate: of AdamW, at its highest.
        adam_betas: two decay rates of AdamW.
        weight_decay: of matrices.
        max_grad_norm: to which gradients are clipped.
        warmup: share of the steps in which the learning rate rises.
        gradient_accumulation: batches of a step.
        gradient_checkpointing: whether activations are computed again instead of kept.
        mixed_precision: "no", "bf16" or "fp16".
    """

    epochs: float
    batch_size: int
    window: int
    learning_rate: float
    adam_betas: list[float]
    weight_decay: float
    max_grad_norm: float
    warmup: float
    gradient_accumulation: int
    gradient_checkpointing: bool
    mixed_precision: str


@dataclass(frozen=True)
class PretrainingOptions(OptimizerOptions):
    """Prediction of hidden tokens (`train.pretraining`); 0 epochs leave it out.

    Attributes:
        hidden_share: of the tokens of rare words.
        negatives: sampled words that a target is told from, beside the batch's other targets.
        embedding_rate: learning rate of the word vectors, as a share of the others'.
    """

    hidden_share: float
    negatives: int
    embedding_rate: float


@dataclass(frozen=True)
class TrainingOptions(OptimizerOptions):
    """Training on labels.

    Attributes:
        crop_share: of the texts, shown as short crops.
        blank_share: of the texts, replaced by unknown words with the label of any.
        encoder_rate: learning rate of the encoder, as a share of the others'; 0 leaves it as pretraining left it.
    """

    crop_share: float
    blank_share: float
    encoder_rate: float


@dataclass(frozen=True)
class CalibrationOptions:
    """`crop_weight` of cropped calibration rows; `novelty_quantile` above which a text counts as unfamiliar."""

    crop_weight: float
    novelty_quantile: float


@dataclass(frozen=True)
class Preset:
    """All options of a run.

    Attributes:
        name: of the file.
        encoder: whose it is: "own", or from a "folder", which then brings its tokenizer and comes pretrained.
        tokenizer: None with an encoder from a folder.
        evidence: of n-grams.
        pretraining: None with an encoder from a folder.
        training: on labels.
        calibration: after training.
        model: handed to `BetConfig`.
    """

    name: str
    encoder: str
    tokenizer: TokenizerOptions | None
    evidence: EvidenceOptions
    pretraining: PretrainingOptions | None
    training: TrainingOptions
    calibration: CalibrationOptions
    model: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for provenance."""
        return dataclasses.asdict(self)


def preset_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a preset by name, or any YAML file of the same form by path.

    Raises:
        ConfigError: if there is none, or listing every key that is unknown, missing or of the wrong type.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIG_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"there is no preset {name!r}; choose one of {', '.join(preset_names())} or give a .yaml file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} holds no sections; start from train/configs/demo.yaml")
    encoder = content.get("encoder")
    sections: dict[str, type] = {
        **({} if encoder == "folder" else {"tokenizer": TokenizerOptions, "pretraining": PretrainingOptions}),
        "evidence": EvidenceOptions,
        "training": TrainingOptions,
        "calibration": CalibrationOptions,
    }
    faults = [f"unknown section {key!r}" for key in content if key not in sections and key not in ("model", "encoder")]
    if encoder not in ("own", "folder"):
        faults.append(f"encoder = {encoder!r} must be own or folder")
    read: dict[str, Any] = {"tokenizer": None, "pretraining": None}
    read |= {key: _section(kind, content.get(key), key, faults) for key, kind in sections.items()}
    model = content.get("model") or {}
    faults += _unknown_model_keys(model)
    if faults:
        raise ConfigError(f"{path.name}: " + "; ".join(faults))
    return Preset(path.stem, encoder=str(encoder), model=model, **read)


def _section(kind: type, content: Any, section: str, faults: list[str]) -> Any:
    if not isinstance(content, dict):
        faults.append(f"section {section!r} is missing")
        return None
    expected = get_type_hints(kind)
    faults += [f"unknown key {section}.{key}" for key in content if key not in expected]
    values = {}
    for key, hint in expected.items():
        if key not in content:
            faults.append(f"missing key {section}.{key}")
            continue
        value = content[key]
        wanted = list if hint == list[float] else hint
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            faults.append(f"{section}.{key} = {value!r} must be of type {wanted.__name__}")
        elif isinstance(value, int | float) and value < 0:
            faults.append(f"{section}.{key} = {value!r} must not be negative")
        values[key] = value
    return None if faults else kind(**values)


def _unknown_model_keys(model: dict[str, Any]) -> list[str]:
    from train.model.config import BetConfig  # noqa: PLC0415  # torch loads only when a preset is used

    known = BetConfig().to_dict()
    return [f"unknown key model.{key}" for key in model if key not in known]
