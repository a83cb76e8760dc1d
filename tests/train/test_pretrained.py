"""A Hugging Face encoder in the place of ours: from its folder to a checkpoint whose graph answers alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_hugging_face import write_folder
from transformers import AutoModel

from export.graph import ServedClassifier
from export.onnx_format import write_onnx
from export.outputs import BET
from export.pieces import vocabulary
from train.__main__ import main
from train.checkpoint import Checkpoint, load_production
from train.errors import CheckpointError, ConfigError
from train.fit import FitOptions, fit
from train.model.pretrained import PretrainedEncoder, read_encoder

TINY = Path(__file__).parents[1] / "tiny.yaml"


def preset(folder: Path) -> Path:
    """The tiny recipe on an encoder from a folder."""
    content = yaml.safe_load(TINY.read_text())
    content["encoder"] = "folder"
    del content["tokenizer"], content["pretraining"]
    content["model"] |= {"hidden_size": 32, "max_tokens": 64, "head_tokens": 16}
    content["training"] |= {"epochs": 1, "encoder_rate": 0.1, "window": 64}
    path = folder / "pretrained_tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(
    scope="module",
    params=["bert", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("roberta", "distilbert"))],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    encoder = write_folder(folder / "encoder", request.param)
    production = fit(FitOptions(output=folder / "run", preset=str(preset(folder)), encoder=encoder, limit=80))
    return load_production(production)


def test_it_starts_from_the_folder_and_is_tuned(trained: Checkpoint) -> None:
    encoder = trained.model.trunk.encoder
    assert isinstance(encoder, PretrainedEncoder)
    original = AutoModel.from_pretrained(trained.path.parents[1] / "encoder").state_dict()
    moved = [
        (value - original[name]).abs().max().item()
        for name, value in encoder.model.state_dict().items()
        if value.is_floating_point()
    ]
    assert 0 < max(moved) < 0.1


@pytest.mark.heavy
def test_its_graph_answers_as_the_model_does(trained: Checkpoint, untraced_exporter: None, tmp_path: Path) -> None:
    classifier = ServedClassifier(
        trained.model, trained.calibration.decide(), vocabulary(trained.tokenizer, trained.model.config.vocab_size)
    ).eval()
    write_onnx(classifier, trained.label_names, tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    for lengths in ((5,), (1, 64, 17), (30, 0, 70, 16)):
        ids = random.integers(4, trained.model.config.vocab_size, sum(lengths)).astype(np.int64)
        column = np.array(lengths, np.int32)[:, None]
        names = ["probabilities", "total", "epistemic"]
        answered = dict(zip(names, session.run(names, {"input_ids": ids, "lengths": column}), strict=True))
        with torch.no_grad():
            expected = dict(zip(BET.tensors, classifier(torch.from_numpy(ids), torch.from_numpy(column)), strict=True))
        for name in names:
            np.testing.assert_allclose(answered[name], expected[name].numpy(), atol=2e-5)


def test_an_encoder_and_a_preset_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="give its Hugging Face folder with --encoder"):
        fit(FitOptions(output=tmp_path / "a", preset=str(preset(tmp_path)), limit=80))
    assert main(["fit", "--output", str(tmp_path / "b"), "--encoder", str(tmp_path), "--limit", "80"]) == 2
    assert "choose --preset pretrained" in capsys.readouterr().err


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_encoder(tmp_path)
    encoder = write_folder(tmp_path / "encoder")
    weights = load_file(encoder / "model.safetensors")
    removed = next(name for name in weights if "attention" in name)
    save_file({k: v for k, v in weights.items() if k != removed}, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights of its encoder"):
        read_encoder(encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"model_type": "no such family"}))
    with pytest.raises(CheckpointError, match="holds no encoder that can be loaded"):
        read_encoder(encoder)
