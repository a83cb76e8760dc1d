"""What is refused, each in one sentence that says what to do, before anything is exported."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hugging_face import LABELS, TEXTS, write_folder, write_rows
from transformers import AutoModel, AutoModelForSequenceClassification

from export.__main__ import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder `model` and its rows, made once; each test spoils a copy."""
    folder = tmp_path_factory.mktemp("made")
    write_rows(write_folder(folder / "model"), folder / "rows.csv")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "model", tmp_path / "model")


@pytest.fixture
def rows(made: Path) -> Path:
    return made / "rows.csv"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `export add`, which must be wrong use; gives the one line that it says."""

    def run(folder: Path, *more: str) -> str:
        models = tmp_path / "models"
        capsys.readouterr()
        assert main(["add", str(folder), "--name", "theirs", "--repository", str(models), *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "".join(said)
        assert said[-1].startswith("error: ")
        assert not (models / "theirs").exists()
        return said[-1]

    return run


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_without_calibration_rows_nothing_could_be_proven(folder: Path, refused: Callable[..., str]) -> None:
    assert "--calibration FILE" in refused(folder)


# peft#2369, optimum#2075
def test_a_body_without_its_head_is_named(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    line = refused(folder, "--calibration", str(rows))
    assert "missing: classifier.bias, classifier.weight" in line


def test_weights_that_the_model_does_not_have_are_named(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    change_weights(folder, lambda weights: weights.update({"second_head.weight": torch.zeros(3)}))
    assert "unexpected: second_head.weight" in refused(folder, "--calibration", str(rows))


def test_a_head_for_another_number_of_classes_is_named(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    configure(folder, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    assert "classifier.weight" in refused(folder, "--calibration", str(rows))


def test_weights_that_are_cut_off_cannot_be_loaded(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cannot be loaded" in refused(folder, "--calibration", str(rows))


def test_two_weight_files_that_differ(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    weights = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    torch.save(weights, folder / "pytorch_model.bin")
    line = refused(folder, "--calibration", str(rows))
    assert "differ in 1 tensors (classifier.bias" in line
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert "cannot be read as weights alone" in refused(folder, "--calibration", str(rows))
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refused(folder, "--calibration", str(rows))


def test_two_sets_of_weights_that_cannot_both_be_meant(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "keep those that were evaluated" in refused(folder, "--calibration", str(rows))


@pytest.mark.parametrize(
    ("changes", "said"),
    [  # the label maps: tf#3093, #20773, #28589, fastai#3945
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, r"leaves gaps"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, r"leaves gaps"),
        ({"id2label": {"anger": "0"}}, "does not map numbers and names"),
        ({"label2id": {"anger": 1, "joy": 0, "neither": 2}}, "contradict each other on 'anger', 'joy'"),
        ({"id2label": {"0": "a", "1": "a", "2": "c"}, "label2id": {}}, "gives two classes one name"),
        ({"num_labels": 4}, "names 3 classes and num_labels says 4"),
        ({"problem_type": "regression"}, "problem_type regression and 3 outputs"),
        ({"problem_type": "ranking"}, "problem_type 'ranking', which transformers does not know"),
        (
            {"id2label": {"0": "score"}, "label2id": {"score": 0}},
            'set problem_type to "regression" (the value as it is) or "multi_label_classification" (its sigmoid)',
        ),
        (
            {"id2label": {"0": "s"}, "label2id": {"s": 0}, "problem_type": "single_label_classification"},
            "single_label_classification, whose softmax is always 1",
        ),
        ({"auto_map": {"AutoModel": "modeling.Theirs"}}, "auto_map"),
        ({"model_type": "bertt"}, "'bertt'"),
        ({"model_type": "gone"}, "model_type"),
        ({"pad_token_id": None}, "no pad_token_id"),
        ({"max_position_embeddings": 4}, "leaves no room"),
    ],
)
def test_a_configuration_that_would_answer_wrongly(
    changes: dict[str, Any], said: str, folder: Path, rows: Path, refused: Callable[..., str]
) -> None:
    configure(folder, **changes)
    assert said in refused(folder, "--calibration", str(rows))


def test_an_adapter_without_its_base(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refused(folder, "--calibration", str(rows))


def test_another_models_tokenizer(folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["foreign"] = 9999
    (folder / "tokenizer.json").write_text(json.dumps(content))
    line = refused(folder, "--calibration", str(rows))
    assert "ids up to 9999" in line
    (folder / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in refused(folder, "--calibration", str(rows))
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(folder, "--calibration", str(rows))


def test_a_tokenizer_that_gives_a_text_other_types_than_the_graph_has(
    folder: Path, rows: Path, refused: Callable[..., str]
) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    for piece in content["post_processor"]["single"]:
        next(iter(piece.values()))["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "type ids [1, 1" in refused(folder, "--calibration", str(rows))


def test_a_limit_that_nobody_states_or_the_model_does_not_have(
    folder: Path, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    deberta = write_folder(tmp_path / "deberta", "deberta-v2")
    assert "--max-tokens" in refused(deberta, "--calibration", str(rows))
    assert "positions for 40 tokens" in refused(folder, "--calibration", str(rows), "--max-tokens", "41")


def test_too_few_rows_and_how_many_it_takes(
    folder: Path, rows: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    lines = rows.read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join(lines[:61]) + "\n")
    line = refused(folder, "--calibration", str(few))
    assert "holds 60 rows" in line
    assert "at least 79 rows" in line


def test_too_few_rows_of_the_other_heads(folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    few = tmp_path / "few.csv"
    with few.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, LABELS[i % 3]) for i, text in enumerate(TEXTS[:60]))])
    configure(folder, problem_type="multi_label_classification")
    assert "at least 79 rows" in refused(folder, "--calibration", str(few))
    with few.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, i) for i, text in enumerate(TEXTS[:18]))])
    score = write_folder(tmp_path / "score", labels=("score",), problem_type="regression")
    assert "holds 18 rows, and an interval that covers 95% takes at least 19" in refused(
        score, "--calibration", str(few)
    )


# sklearn#29551, #17827, datasets#5532, mteb#519
@pytest.mark.parametrize(("rows", "said"), [(0, "0 of 79"), (1, "1 of 80")])
def test_a_class_with_too_few_rows_is_named_with_their_number(
    rows: int, said: str, folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    few = tmp_path / "few.csv"
    labels = [LABELS[i % 2] for i in range(79)] + [LABELS[2]] * rows
    with few.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, labels, strict=False)])
    line = refused(folder, "--calibration", str(few))
    assert f"'neither' ({said} rows)" in line
    assert "'anger'" not in line


def test_classes_without_rows_are_all_named(folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    one = tmp_path / "one.csv"
    with one.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, LABELS[1]) for text in TEXTS)])
    line = refused(folder, "--calibration", str(one))
    assert "'anger' (0 of 240 rows), 'neither' (0 of 240 rows)" in line


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_an_architecture_whose_answers_depend_on_padding_with_the_difference(
    kind: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    labels = ("score",) if kind == "regression" else LABELS
    fnet = write_folder(tmp_path / "fnet", "fnet", labels=labels, problem_type=kind)
    line = refused(fnet, "--calibration", str(write_rows(fnet, tmp_path / "rows.csv")))
    said = re.search(r"FNetForSequenceClassification answers differently where a text is padded, by ([\d.]+) in", line)
    assert said is not None
    assert float(said[1]) > 0.1


def test_a_limit_at_which_the_model_fails(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Its positions begin behind the padding token's, which its configuration does not say and our table not know."""
    folder = write_folder(tmp_path / "model", "data2vec-text")
    rows = write_rows(folder, tmp_path / "rows.csv")
    assert "fails on texts of up to 42 tokens" in refused(folder, "--calibration", str(rows))


# tf#17468
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, folder: Path, rows: Path, refused: Callable[..., str]) -> None:
    change_weights(folder, lambda weights: weights["classifier.bias"].fill_(value))
    assert "classifier.bias" in refused(folder, "--calibration", str(rows))


def test_weights_so_large_that_the_answers_are_no_numbers(
    folder: Path, rows: Path, refused: Callable[..., str]
) -> None:
    change_weights(folder, lambda weights: weights["classifier.weight"].fill_(3e38))
    assert "no numbers" in refused(folder, "--calibration", str(rows))


def test_another_kind_of_answers_under_a_name_that_callers_know(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "model", labels=("negative", "positive"))
    rows = write_rows(folder, tmp_path / "rows.csv")
    arguments = ["add", str(folder), "--calibration", str(rows), "--name", "bet", "--repository", str(repository)]
    assert main(arguments) == 2
    assert "choose another --name" in capsys.readouterr().err


def test_our_own_checkpoints_state_their_limit(tiny_checkpoint: Path, refused: Callable[..., str]) -> None:
    assert "--max-tokens" in refused(tiny_checkpoint, "--max-tokens", "64")
