"""A Hugging Face encoder in the place of our own: the same segments, evidence, read-out and posterior around it.

Each segment is a sequence of its own to the encoder, opened by its opening token, so the packed form stays: no padding
between texts, cost in proportion to tokens, and segments that can be read in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from train.errors import CheckpointError
from train.model.config import BetConfig
from train.model.position import FEATURES
from train.model.segments import Segments


class PretrainedEncoder(nn.Module):
    """Hidden states of a Hugging Face encoder, segment by segment."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        self.opening, self.padding = config.opening_token_id, config.pad_token_id
        assert config.pretrained is not None
        self.model = AutoModel.from_config(AutoConfig.for_model(**config.pretrained), attn_implementation="eager")
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # a first token's summary, which nothing here reads
        self.position = nn.Linear(FEATURES, config.hidden_size)
        nn.init.zeros_(self.position.weight)
        nn.init.zeros_(self.position.bias)

    def forward(self, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
        """ids [S, c], position features [S, c, 8] -> hidden states [S * c, width]."""
        mask = segments.mask
        opening = torch.full_like(ids[:, :1], self.opening)
        sequence = torch.cat([opening, torch.where(mask, ids, self.padding)], 1)
        attended = torch.cat([torch.ones_like(opening), mask.to(ids.dtype)], 1)
        hidden: Tensor = self.model(input_ids=sequence, attention_mask=attended).last_hidden_state[:, 1:]
        placed: Tensor = hidden + self.position(position)
        return placed.flatten(0, 1)


def read_encoder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights (float32) of the encoder in a Hugging Face folder, for `BetConfig.pretrained`.

    Raises:
        CheckpointError: if it is no encoder that can be read without running code from the folder.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"there is no Hugging Face encoder at {folder}: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, notes = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"{folder} holds no encoder that can be loaded: {error}") from error
    missing = sorted(name for name in notes["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{folder} lacks weights of its encoder, which would be random: {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    if not isinstance(config, PretrainedConfig) or getattr(config, "is_decoder", False) or config.is_encoder_decoder:
        raise CheckpointError(f"{folder} holds a {config.model_type} with a decoder; give an encoder")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}
    described = config.to_diff_dict() | {"model_type": config.model_type, "hidden_size": config.hidden_size}
    return described, weights
