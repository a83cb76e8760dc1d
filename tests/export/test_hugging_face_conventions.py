"""Bodies and tokenizers as they are found in the wild: mixed, half-stated, of low precision, or of another kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_hugging_face import FAMILIES, LABELS, LIMIT, TEXTS, tokenizer_of, write_folder, write_rows
from tokenizers import Tokenizer, processors
from transformers import AutoModelForSequenceClassification

from export import onnx_format
from export.__main__ import main
from export.add import clear_of_rows, in_process_parity
from export.checkpoints import gate_texts, load_checkpoint
from export.errors import RefusedCheckpointError
from export.hugging_face import HuggingFaceCheckpoint
from export.repository import Names
from export.rows import RowFiles
from export.staged import StagedVersion
from train.decision import Decision
from verdict import Report

DECISION = Decision(0.05, 0.95, 0.5, None, None, 0.95, 0.7, 100, 0.5, 0.01, 0.04, "", 1.5)


def load(folder: Path) -> HuggingFaceCheckpoint:
    checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    return checkpoint


def assert_parity(folder: Path, to: Path) -> StagedVersion:
    """Both exports of the folder answer as PyTorch does on each text alone."""
    checkpoint, files = load(folder), RowFiles(calibration=write_rows(folder, to / "rows.csv"))
    calibration = checkpoint.calibrate(files, 59)
    decision = clear_of_rows(calibration.decide(max_error=0.2), calibration.true_probability)
    version = StagedVersion(to / "staged", Names("theirs"), checkpoint, decision, files)
    version.write()
    parity, report = in_process_parity(version, gate_texts(checkpoint, files, 21)), Report("add")
    parity.add_to(report)
    assert report.holds, report.table()
    assert len(set(parity.reference.label.tolist())) > 1
    return version


def put_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))


def with_an_xlmr_tokenizer(folder: Path) -> Path:
    """As paraphrase-multilingual-MiniLM is made: the ids of padding differ between tokenizer (1) and body (0)."""
    put_tokenizer(write_folder(folder, "bert"), tokenizer_of(FAMILIES["xlm-roberta"]))
    return folder


def with_a_tokenizer_that_emits_types(folder: Path, family: str = "distilbert", **config: Any) -> Path:
    tokenizer = tokenizer_of(FAMILIES["bert"])
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=special
    )
    put_tokenizer(write_folder(folder, family, **config), tokenizer)
    return folder


MIXED: dict[str, Callable[[Path], Path]] = {
    "BERT with the tokenizer of XLM-R": with_an_xlmr_tokenizer,
    "no types in the body, types in the tokenizer": with_a_tokenizer_that_emits_types,
    "one type in the body, two in the tokenizer": lambda folder: with_a_tokenizer_that_emits_types(
        folder, "bert", type_vocab_size=1
    ),
}


@pytest.mark.parametrize(
    "mix", [pytest.param(mix, marks=[pytest.mark.heavy] if "no types" in mix else []) for mix in MIXED]
)
def test_a_body_with_the_tokenizer_of_another_family_answers_as_in_pytorch(mix: str, tmp_path: Path) -> None:
    # optimum#1758, #1500, transformer-deploy#154
    folder = MIXED[mix](tmp_path / "model")
    version = assert_parity(folder, tmp_path)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.enable_truncation(LIMIT)
    for ids, encoding in zip(version.checkpoint.encoder.encode(TEXTS), own.encode_batch(list(TEXTS)), strict=True):
        assert ids.tolist() == encoding.ids


@pytest.mark.heavy
def test_a_bert_with_the_tokenizer_of_xlmr_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # optimum#1758, transformer-deploy#154
    monkeypatch.chdir(tmp_path)
    folder = with_an_xlmr_tokenizer(tmp_path / "model")
    rows = write_rows(folder, tmp_path / "rows.csv")
    arguments = ["add", str(folder), "--calibration", str(rows), "--repository", str(tmp_path / "models")]
    assert main([*arguments, "--name", "theirs", "--max-error", "0.2", "--gate-texts", "28"]) == 0


def test_a_body_that_fails_in_pytorch_itself_is_refused_with_what_it_says(tmp_path: Path) -> None:
    # optimum#1500: no row for the one type that every token has
    folder = write_folder(tmp_path / "model", "bert")
    rows = write_rows(folder, tmp_path / "rows.csv")
    weights = AutoModelForSequenceClassification.from_pretrained(folder)
    weights.bert.embeddings.token_type_embeddings.weight = torch.nn.Parameter(torch.empty(0, 32))
    weights.config.type_vocab_size = 0
    weights.save_pretrained(folder)
    with pytest.raises(RefusedCheckpointError, match="BertForSequenceClassification fails on texts"):
        load(folder).calibrate(RowFiles(calibration=rows), 59)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_low_precision_is_served_in_float32_and_says_so(dtype: torch.dtype, tmp_path: Path) -> None:
    # PT#143643, tf#47050
    folder = write_folder(tmp_path / "model", "bert")
    AutoModelForSequenceClassification.from_pretrained(folder).to(dtype).save_pretrained(folder)
    checkpoint = load(folder)
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}
    assert checkpoint.record(RowFiles())["training"] == {
        "dtype": str(dtype).removeprefix("torch."),
        "served": "float32",
    }
    own = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    (ids,) = checkpoint.encoder.encode(TEXTS[:1])
    right = own(input_ids=torch.from_numpy(ids)[None]).logits.detach()
    np.testing.assert_allclose(checkpoint.logits([ids]), right, atol=1e-4)


def without_special_tokens(folder: Path) -> Path:
    tokenizer = Tokenizer.from_file(str(write_folder(folder, "bert") / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_tokenizer_that_adds_nothing_gives_an_empty_text_an_answer_and_its_neighbours_theirs(tmp_path: Path) -> None:
    # tf#38417
    checkpoint = load(without_special_tokens(tmp_path / "model"))
    texts = [TEXTS[0], "", "  ", "\u200b", TEXTS[5]]
    documents = checkpoint.encoder.encode(texts)
    assert [document.dtype for document in documents] == [np.int64] * 5
    assert [len(document) for document in documents[1:4]] == [1, 1, 1]
    answers = checkpoint.answers(DECISION, documents)
    assert np.isfinite(answers.probabilities).all()
    lengths = torch.tensor([[len(document)] for document in documents], dtype=torch.int32)
    with torch.no_grad():
        together = checkpoint.classifier(DECISION)(torch.from_numpy(np.concatenate(documents)), lengths)[1]
    np.testing.assert_allclose(together, answers.probabilities, atol=1e-5)


@pytest.mark.parametrize("stated", [None, {}, {"model_max_length": int(1e30)}, {"model_max_length": 7}])
def test_the_limit_is_the_models_whatever_its_tokenizer_says(stated: dict[str, int] | None, tmp_path: Path) -> None:
    # bert_score#205, flair#2476
    folder = write_folder(tmp_path / "model", "roberta")
    if stated is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    checkpoint = load(folder)
    (ids,) = checkpoint.encoder.encode([" ".join(["film"] * 2000)])
    assert len(ids) == checkpoint.encoder.max_length == LIMIT
    assert checkpoint.encoder.count([" ".join(["film"] * 2000)]) == [2002]
    assert np.isfinite(checkpoint.logits([ids])).all()


def decoder(folder: Path) -> Path:
    """A GPT-2 with a head: it reads a row at its last token that is not the padding's."""
    tokenizer = tokenizer_of(FAMILIES["bert"])
    tokenizer.add_special_tokens(["<|endoftext|>"])
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = None
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=LIMIT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_decoder_that_states_no_padding_is_refused(tmp_path: Path) -> None:  # tf#34055
    with pytest.raises(RefusedCheckpointError, match="states no pad_token_id"):
        load(decoder(tmp_path / "model"))


def test_a_decoder_whose_padding_is_its_end_of_text_reads_that_in_a_text_as_plain_text(tmp_path: Path) -> None:
    # tf#34055
    folder = decoder(tmp_path / "model")
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": end}))
    checkpoint = load(folder)
    texts = ["a film<|endoftext|> and more", "<|endoftext|>", TEXTS[8], TEXTS[0]]
    documents = checkpoint.encoder.encode(texts)
    assert not any(end in document for document in documents)
    together = checkpoint.logits(documents)
    for document, logits in zip(documents, together, strict=True):
        np.testing.assert_allclose(logits, checkpoint.logits([document])[0], atol=1e-5)


def test_a_graph_that_the_server_cannot_load_is_refused_before_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # server#8001, ORT#14932
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx_format, "HIGHEST_IR", 7)
    rows = write_rows(write_folder(tmp_path / "model", "bert"), tmp_path / "rows.csv")
    arguments = ["add", str(tmp_path / "model"), "--calibration", str(rows), "--repository", str(tmp_path / "models")]
    assert main([*arguments, "--name", "theirs", "--gate-texts", "21"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "IR version 8" in said
    assert "ONNX Runtime 1.20" in said
    assert not (tmp_path / "models" / "theirs").exists()


def test_words_beyond_a_tokenizers_longest_are_unknown_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # tf#17551
    checkpoint = load(write_folder(tmp_path / "model", "bert"))
    whole, unknown = "good " + "ab" * 50, "good " + "ab" * 50 + "a"
    assert checkpoint.encoder.unknown([whole]) == (0, checkpoint.encoder.count([whole])[0] - 2)
    assert checkpoint.encoder.unknown([unknown])[0] == 1
    rows = tmp_path / "texts.csv"
    rows.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS) + f"{unknown}\n")
    caplog.set_level(logging.INFO)
    gate_texts(checkpoint, RowFiles(texts=rows), 21)
    (said,) = [record for record in caplog.records if "unknown to the tokenizer" in record.message]
    assert said.levelno == logging.INFO
    rows.write_text("text\n" + "".join(f"{unknown} {text}\n" for text in TEXTS))
    gate_texts(checkpoint, RowFiles(texts=rows), 21)
    assert caplog.records[-1].levelno == logging.WARNING
