"""What a Hugging Face folder says about itself, and the refusals that need no weights.

transformers warns, or says nothing, where an answer would be wrong: `id2label` keeps the order of the file, a second
weight file is ignored, an adapter without its base loads as the base alone. Here each of these is an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PretrainedConfig

from export.errors import RefusedCheckpointError
from export.outputs import MULTI_LABEL, REGRESSION, SOFTMAX, Kind
from train.checkpoint import sha256_of

CONFIG, WEIGHTS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
SHARDS = "model.safetensors.index.json"

# Positions of these begin behind the padding token's: 514 rows of the table are 512 positions.
POSITIONS_AFTER_PAD = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
# Relative or rotary positions: nothing fails beyond `max_position_embeddings`, so that is no limit.
WITHOUT_LIMIT = frozenset({"deberta", "deberta-v2", "modernbert"})
_SMALLEST_LIMIT = 8


@dataclass(frozen=True)
class FolderFacts:
    """A folder that may be loaded: its configuration as transformers reads it, and what we take from it."""

    config: PretrainedConfig
    label_names: tuple[str, ...]
    max_tokens: int
    pad_id: int
    identity: str  # over the configuration, the weights and the tokenizer's files
    kind: Kind  # what its head answers


def read_facts(path: Path, max_tokens: int | None) -> FolderFacts:
    """Read and check a folder.

    Raises:
        RefusedCheckpointError: naming what is wrong with it, and what to do.
    """
    if (path / "adapter_config.json").is_file():
        raise RefusedCheckpointError(
            f"{path} is an adapter without its base model; merge them (peft: `merge_and_unload()`, then "
            "`save_pretrained`) and give that folder"
        )
    raw: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    _require_no_code_of_its_own(path, raw)
    label_names = _label_names(path, raw)
    kind = _kind(path, raw, label_names)
    _require_one_set_of_weights(path)
    names = dict(enumerate(label_names))
    try:
        # The names are given as a map: transformers cannot read a list.
        kept = {key: value for key, value in raw.items() if key not in ("id2label", "label2id", "num_labels")}
        config = AutoConfig.for_model(**kept, id2label=names, label2id={name: index for index, name in names.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedCheckpointError(
            f"{path / CONFIG}: transformers does not know this configuration (model_type {raw.get('model_type')!r}): "
            f"{error}"
        ) from error
    if getattr(config, "pad_token_id", None) is None:
        raise RefusedCheckpointError(
            f"{path / CONFIG} states no pad_token_id, so rows of different lengths cannot be put side by side; "
            "set the one that the model was trained with"
        )
    limit = _limit(path, config, max_tokens)
    return FolderFacts(config, label_names, limit, int(config.pad_token_id), _hash(path), kind)


def _require_no_code_of_its_own(path: Path, raw: dict[str, Any]) -> None:
    for file in (CONFIG, "tokenizer_config.json"):
        content = raw if file == CONFIG else _json_of(path / file)
        if content.get("auto_map"):
            raise RefusedCheckpointError(
                f"{path / file} has an auto_map: the model brings code of its own, which is not run here; give a "
                "checkpoint of an architecture that transformers contains"
            )


def _label_names(path: Path, raw: dict[str, Any]) -> tuple[str, ...]:
    """Class names in the order of their numbers, whatever the order or form in the file."""
    given, count = raw.get("id2label"), raw.get("num_labels")
    if given is None:
        given = {i: f"LABEL_{i}" for i in range(2 if count is None else count)}
    where = f"{path / CONFIG}: id2label"
    back = raw.get("label2id") or {}
    try:
        listed = isinstance(given, list)
        by_number = dict(enumerate(given)) if listed else {int(key): name for key, name in given.items()}
        back = {name: int(number) for name, number in back.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise RefusedCheckpointError(
            f"{where} or label2id does not map numbers and names ({error}); mend it"
        ) from error
    if sorted(by_number) != list(range(len(by_number))) or len(by_number) < 1:
        raise RefusedCheckpointError(
            f"{where} numbers the classes {sorted(by_number)}, which leaves gaps; number them from 0 to "
            f"{len(by_number) - 1}"
        )
    names = tuple(str(by_number[i]) for i in range(len(by_number)))
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise RefusedCheckpointError(f"{where} gives two classes one name, or none: {', '.join(names)}; rename them")
    if count is not None and count != len(names):
        raise RefusedCheckpointError(f"{where} names {len(names)} classes and num_labels says {count}; mend one")
    wrong = [name for name, number in back.items() if by_number.get(number) != name]
    if wrong:
        raise RefusedCheckpointError(
            f"{where} and label2id contradict each other on {', '.join(map(repr, wrong))}; mend the wrong one, since "
            "every answer would carry it"
        )
    return names


def _kind(path: Path, raw: dict[str, Any], names: tuple[str, ...]) -> Kind:
    """What the head answers, as transformers' pipeline takes it; what that guesses, is asked."""
    problem, where = raw.get("problem_type"), path / CONFIG
    if problem is None and len(names) == 1:
        raise RefusedCheckpointError(
            f"{where} has a single output and no problem_type, so nobody knows what it means; set problem_type to "
            '"regression" (the value as it is) or "multi_label_classification" (its sigmoid)'
        )
    if problem == "single_label_classification" and len(names) == 1:
        raise RefusedCheckpointError(
            f"{where} has a single output and the problem_type single_label_classification, whose softmax is always 1; "
            'set problem_type to "regression" (the value as it is) or "multi_label_classification" (its sigmoid)'
        )
    if problem == "regression" and len(names) > 1:
        raise RefusedCheckpointError(
            f"{where} has the problem_type regression and {len(names)} outputs; one value is served: give a model with "
            "a single output for each"
        )
    kinds = {
        None: SOFTMAX,
        "single_label_classification": SOFTMAX,
        "multi_label_classification": MULTI_LABEL,
        "regression": REGRESSION,
    }
    if problem not in kinds:
        raise RefusedCheckpointError(
            f"{where} has the problem_type {problem!r}, which transformers does not know; it is one of "
            f"{', '.join(name for name in kinds if name)}"
        )
    return kinds[problem]


def _require_one_set_of_weights(path: Path) -> None:
    if not (path / WEIGHTS).is_file() and not (path / SHARDS).is_file():
        raise RefusedCheckpointError(
            f"{path} holds no {WEIGHTS}; load it once with transformers and write it again with `save_pretrained`"
        )
    if (path / WEIGHTS).is_file() and (path / SHARDS).is_file():
        raise RefusedCheckpointError(
            f"{path} holds {WEIGHTS} and the shards of {SHARDS} as well; keep those that were evaluated and delete the "
            "others"
        )
    if not (path / WEIGHTS).is_file() or not (path / PICKLED).is_file():
        return
    ours = load_file(path / WEIGHTS)
    try:
        theirs = torch.load(path / PICKLED, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise RefusedCheckpointError(
            f"{path}: {PICKLED} beside {WEIGHTS} cannot be read as weights alone; delete it if {WEIGHTS} is right"
        ) from error
    differ = [name for name in ours if name in theirs and not _same(ours[name], theirs[name])]
    if differ:
        raise RefusedCheckpointError(
            f"{path}: {WEIGHTS} and {PICKLED} differ in {len(differ)} tensors ({differ[0]} …); keep the one that was "
            "evaluated and delete the other"
        )


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.float(), theirs.float())


def _limit(path: Path, config: PretrainedConfig, asked: int | None) -> int:
    stated: int | None = (
        None if config.model_type in WITHOUT_LIMIT else getattr(config, "max_position_embeddings", None)
    )
    if stated is not None and config.model_type in POSITIONS_AFTER_PAD:
        stated -= int(config.pad_token_id) + 1
    if stated is None and asked is None:
        raise RefusedCheckpointError(
            f"{path}: a {config.model_type} states no limit of tokens; give the one that it was trained with as "
            "--max-tokens, for instance 512"
        )
    limit = min(n for n in (stated, asked) if n is not None)
    if asked is not None and stated is not None and asked > stated:
        raise RefusedCheckpointError(f"--max-tokens {asked}: the model has positions for {stated} tokens; give no more")
    if limit < _SMALLEST_LIMIT:
        raise RefusedCheckpointError(f"{path}: a limit of {limit} tokens leaves no room for a text; give --max-tokens")
    return limit


def _json_of(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _hash(path: Path) -> str:
    """Of the names and hashes of the files that decide on an answer."""
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".txt", ".model"))
    return hashlib.sha256("\n".join(f"{file.name} {sha256_of(file)}" for file in files).encode()).hexdigest()
