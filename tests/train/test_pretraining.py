"""The encoder learns to predict hidden words, and what it learnt survives an interruption."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from train import trainer
from train.errors import ConfigError
from train.model import BetConfig, BetForSequenceClassification
from train.model.position import position_features
from train.model.segments import segment
from train.preset import PretrainingOptions, load_preset
from train.pretraining import PRETRAINED, PRETRAINING, pretrain

WORDS, ROWS = 40, 60


class Killed(RuntimeError):
    pass


def documents() -> list[np.ndarray]:
    """Texts in which a word is always followed by the next one: a hidden word can be told from its neighbours."""
    random = np.random.default_rng(0)
    return [(random.integers(0, WORDS) + np.arange(random.integers(8, 30))) % WORDS + 2 for _ in range(ROWS)]


def model() -> BetForSequenceClassification:
    set_seed(0)
    config = BetConfig(
        vocab_size=WORDS + 2, embedding_size=16, hidden_size=16, num_attention_heads=2, intermediate_size=16,
        evidence_width=8, hash_slots=64, segment_length=16, hidden_dropout=0.0,
    )  # fmt: skip
    made = BetForSequenceClassification(config)
    made.trunk.encoder.get_submodule("embedding").get_parameter("weight").data.normal_(0, 0.1)
    return made


def options(**changes: Any) -> PretrainingOptions:
    preset = load_preset("demo").pretraining
    assert preset is not None
    return replace(preset, **{"epochs": 4.0, "batch_size": 10, "window": 16, "negatives": 20, **changes})


def test_mixed_precision_is_accepted_without_a_gpu(tmp_path: Path) -> None:
    arguments = trainer.trainer_arguments(options(mixed_precision="bf16"), tmp_path, seed=0)
    assert arguments.bf16
    assert arguments.device.type == "cpu" or torch.accelerator.is_available()


def test_a_precision_that_the_hardware_lacks_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r'"fp16" needs a GPU.*set "no" or "bf16"'):
        trainer.trainer_arguments(options(mixed_precision="fp16"), tmp_path, seed=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ConfigError, match=r'"bf16": Tesla T4 .*set "fp16" or "no"'):
        trainer.trainer_arguments(options(mixed_precision="bf16"), tmp_path, seed=0)


def test_hidden_words_are_learnt_and_only_the_encoder_changes(tmp_path: Path) -> None:
    trained, untouched = model(), model()
    pretrain(trained, documents(), options(epochs=30.0), tmp_path, seed=0, resume=False)
    state = trained.state_dict()
    for name, value in untouched.state_dict().items():
        assert torch.equal(value, state[name]) == (not name.startswith("trunk.encoder.")), name
    assert not any(p.requires_grad for name, p in trained.named_parameters() if name.endswith("embedding.weight"))
    assert not (tmp_path / PRETRAINING).exists()
    assert probed(trained) < probed(untouched) - 0.5


def probed(of: BetForSequenceClassification) -> float:
    """How well a hidden word can be read off the hidden states: cross-entropy of a linear probe, nats."""
    ids = torch.from_numpy(np.concatenate(documents()))
    lengths = torch.tensor([[len(d)] for d in documents()], dtype=torch.int32)
    tokens = of.read_tokens(ids, lengths)
    segments = segment(tokens, lengths, 16)
    hidden = segments.mask & (torch.rand(segments.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
    position = position_features(segments.offset, tokens.lengths[segments.row][:, None])
    with torch.no_grad():
        states = of.trunk.encoder(torch.where(hidden, 1, segments.ids), position, segments)[hidden.flatten()]
    probe = torch.nn.Linear(16, WORDS + 2)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(probe(states), segments.ids[hidden])
        value = value + 1e-3 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return torch.nn.functional.cross_entropy(probe(states), segments.ids[hidden]).item()


def test_a_killed_and_resumed_pretraining_ends_bit_equal_and_a_sealed_one_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = model()
    pretrain(whole, documents(), options(), tmp_path / "whole", seed=0, resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_Epochs", KilledInTheThirdEpoch)
        with pytest.raises(Killed):
            pretrain(model(), documents(), options(), tmp_path / "killed", seed=0, resume=False)
    caplog.set_level(logging.INFO)
    resumed = model()
    pretrain(resumed, documents(), options(), tmp_path / "killed", seed=0, resume=True)
    assert "pretraining: resuming from" in caplog.text
    again = model()
    pretrain(again, documents(), options(), tmp_path / "whole", seed=0, resume=False)
    assert "pretrained encoder: reused" in caplog.text
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(value, again.state_dict()[name]), name


class KilledInTheThirdEpoch(trainer._Epochs):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 * ROWS // 10 + 2:
            raise Killed


def test_a_damaged_pretrained_encoder_is_made_again_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = model(), model()
    pretrain(first, documents(), options(), tmp_path, seed=0, resume=False)
    (tmp_path / PRETRAINED / "encoder.safetensors").write_bytes(b"")
    pretrain(second, documents(), options(), tmp_path, seed=0, resume=False)
    assert "altered: encoder.safetensors" in caplog.text
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
