"""Hugging Face classifiers of every encoder family: exported forms answer as the model does on each text alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny_hugging_face import FAMILIES, LABELS, LIMIT, TEXTS, without_limit, write_folder, write_rows
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from export.__main__ import main
from export.add import clear_of_rows, in_process_parity
from export.checkpoints import gate_texts, load_checkpoint
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import open_session
from export.outputs import SOFTMAX
from export.padded import pad_rows
from export.parity import onnx_executor
from export.repository import Names
from export.rows import RowFiles
from export.staged import StagedVersion
from export.texts import HOSTILE
from train.decision import Decision
from train.temperature import fit_temperature
from verdict import Report

# Positions from 0 and behind the padding, absolute and relative; all of them go through the live server in
# test_families_served.
FAST = ("bert", "roberta", "deberta-v2", "modernbert")
SERVED = [
    pytest.param(family, marks=[] if family in FAST else pytest.mark.heavy)
    for family in FAMILIES
    if family not in ("fnet", "data2vec-text")
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder `model` and rows `rows.csv` of a family, made once."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            write_rows(write_folder(folders[family] / "model", family), folders[family] / "rows.csv")
        return folders[family]

    return make


@pytest.fixture(scope="session")
def staged_of(made: Callable[[str], Path]) -> Callable[[str], StagedVersion]:
    """A family's version as it would be served, written once."""
    found: dict[str, StagedVersion] = {}

    def of(family: str) -> StagedVersion:
        if family not in found:
            found[family] = stage(made(family), family, made(family) / "staged")
        return found[family]

    return of


def load(folder: Path, family: str) -> HuggingFaceCheckpoint:
    checkpoint = load_checkpoint(folder / "model", LIMIT if without_limit(family) else None)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    return checkpoint


def stage(folder: Path, family: str, to: Path) -> StagedVersion:
    checkpoint, files = load(folder, family), RowFiles(calibration=folder / "rows.csv")
    calibration = checkpoint.calibrate(files, 59)
    decision = clear_of_rows(calibration.decide(max_error=0.2), calibration.true_probability)
    version = StagedVersion(to, Names("theirs"), checkpoint, decision, files)
    version.write()
    return version


@pytest.mark.parametrize("family", SERVED)
def test_every_family_answers_as_in_pytorch_alone_joined_and_filled(
    family: str, staged_of: Callable[[str], StagedVersion]
) -> None:
    version = staged_of(family)
    parity = in_process_parity(version, gate_texts(version.checkpoint, version.files, 42))
    report = Report("add")
    parity.add_to(report)
    assert report.holds, report.table()
    assert set(parity.differences) == {"joined", "torchscript", "onnx"}
    assert len(set(parity.reference.label.tolist())) > 1  # a model that always says the same would prove little
    assert parity.reference.aleatoric is None
    assert version.decision.risk_threshold > 0
    assert not version.checkpoint.answers(version.decision, version.checkpoint.encoder.encode(TEXTS)).review.all()


@pytest.mark.parametrize("family", SERVED)
def test_ids_and_cut_are_those_of_the_tokenizer_itself(family: str, made: Callable[[str], Path]) -> None:
    checkpoint = load(made(family), family)
    own = Tokenizer.from_file(str(made(family) / "model" / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(LIMIT)
    own.encode_special_tokens = True
    texts = [*TEXTS, *HOSTILE, " ".join(TEXTS[:5])]
    for ids, encoding in zip(checkpoint.encoder.encode(texts), own.encode_batch(texts), strict=True):
        assert ids.tolist() == encoding.ids
    assert max(map(len, checkpoint.encoder.encode(texts))) == LIMIT


def test_a_model_that_was_trained_on_the_ends_of_texts_reads_their_ends(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "bert")
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(LIMIT, direction="left")
    text = " ".join(TEXTS[:9])
    assert load(tmp_path, "bert").encoder.encode([text])[0].tolist() == own.encode(text).ids


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_users_special_tokens_are_plain_text(family: str, made: Callable[[str], Path]) -> None:
    encoder = load(made(family), family).encoder
    kind = FAMILIES[family]
    (ids,) = encoder.encode([f"good {kind.closing} bad {kind.padding}"])
    assert ids.tolist().count(encoder.tokenizer.token_to_id(kind.closing)) == 1
    assert encoder.tokenizer.token_to_id(kind.padding) not in ids


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_an_empty_and_an_over_long_row_leave_their_neighbours_alone(
    family: str, staged_of: Callable[[str], StagedVersion]
) -> None:
    version = staged_of(family)
    execute = onnx_executor(open_session(version.onnx, {}))
    one, other = version.checkpoint.encoder.encode(TEXTS[3:5])
    rows = [one, np.empty(0, np.int64), np.tile(one, 9), other]
    together = execute(np.concatenate(rows), np.array([[len(row)] for row in rows], np.int32))
    alone = version.checkpoint.answers(version.decision, [one, np.tile(one, 9)[:LIMIT], other])
    np.testing.assert_allclose(together.probabilities[[0, 2, 3]], alone.probabilities, atol=2e-5)
    assert np.isfinite(together.probabilities).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 9))
def test_rows_are_put_side_by_side_and_cut_at_the_limit(sizes: list[int], limit: int) -> None:
    rows = [torch.arange(size) + 100 * i for i, size in enumerate(sizes)]
    ids, mask = pad_rows(torch.cat(rows), torch.tensor([[size] for size in sizes], dtype=torch.int32), limit, 7)
    assert ids.shape == mask.shape == (len(sizes), max(1, min(max(sizes), limit)))
    for i, row in enumerate(rows):
        assert ids[i, : len(row)].tolist() == row[:limit].tolist()
        assert (ids[i, len(row) :] == 7).all()
        assert int(mask[i].sum()) == max(1, min(len(row), limit))


def test_probabilities_are_the_softmax_at_the_temperature(made: Callable[[str], Path]) -> None:
    checkpoint = load(made("bert"), "bert")
    decision = Decision(0.05, 0.95, 0.5, None, None, 0.95, 0.7, 100, 0.5, 0.01, 0.04, "", 2.5)
    (ids,) = checkpoint.encoder.encode(TEXTS[:1])
    model = AutoModelForSequenceClassification.from_pretrained(made("bert") / "model").eval()
    right = (model(input_ids=torch.from_numpy(ids)[None]).logits[0] / 2.5).softmax(0).detach()
    answer = checkpoint.answers(decision, [ids])
    np.testing.assert_allclose(answer.probabilities[0], right, atol=1e-5)
    assert answer.total[0] == pytest.approx(float(-(right * right.log()).sum()), abs=1e-5)
    assert answer.label[0] == LABELS[int(right.argmax())]
    assert answer.reason[0] == ("uncertain" if answer.total[0] > 0.5 else "")


@pytest.mark.parametrize("times", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_how_much_too_sure_a_model_is(times: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > random.random((4000, 1))).argmax(1)
    assert fit_temperature((times * logits).astype(np.float32), labels) == pytest.approx(times, rel=0.06)


def test_rows_that_are_all_right_do_not_make_a_model_infinitely_sure() -> None:
    logits = np.tile(np.float32([3, 0, 0]), (120, 1))
    assert 0.3 < fit_temperature(logits, np.zeros(120, np.int64)) < 1


def wrong_temperature(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("temperature"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name))


def one_weight_changed(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("classifier.bias"))
    values = numpy_helper.to_array(tensor).copy()
    values[0] += np.float32(0.01)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swapped_labels(model: onnx.ModelProto) -> None:
    (names,) = (t for t in model.graph.initializer if t.name == "label_names")
    names.string_data[:] = names.string_data[::-1]


def wrong_activation(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if "probabilities" in n.output)
    node.op_type, node.name = "Sigmoid", "wrong_activation"


def swapped_arguments(model: onnx.ModelProto) -> None:
    other = {"padded_ids": "attention_mask", "attention_mask": "padded_ids"}
    for node in model.graph.node:
        if node.output[0] in other:
            node.output[0] = other[node.output[0]]


def padded_on_the_left(model: onnx.ModelProto) -> None:
    """Each row's tokens moved to its end, as a tokenizer with padding_side="left" would have it."""
    for node in model.graph.node:
        if node.name == "ragged_beyond_Add":
            node.input[1] = "shifted"
            place = list(model.graph.node).index(node)
    shift = [
        onnx.helper.make_node("Sub", ["ragged_positions", "ragged_longest"], ["from_end"]),
        onnx.helper.make_node("Unsqueeze", ["ragged_kept", "ragged_column"], ["widths"]),
        onnx.helper.make_node("Add", ["from_end", "widths"], ["shifted_signed"]),
        onnx.helper.make_node("Max", ["shifted_signed", "ragged_zero"], ["shifted"]),
    ]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *shift, *nodes[place:]])


@pytest.mark.parametrize(
    ("break_it", "missed"),
    [
        (wrong_temperature, "parity_onnx"),
        (one_weight_changed, "parity_onnx"),
        (swapped_labels, "label_flips"),
        (wrong_activation, "parity_onnx"),
        (swapped_arguments, "parity_onnx"),
        (padded_on_the_left, "parity_onnx"),
    ],
)
def test_a_broken_graph_is_refused(
    break_it: Callable[[onnx.ModelProto], None],
    missed: str,
    made: Callable[[str], Path],
    tmp_path: Path,
    break_onnx: Callable[[Callable[[onnx.ModelProto], None]], None],
) -> None:
    break_onnx(break_it)
    folder, models = made("bert"), tmp_path / "models"
    arguments = ["add", str(folder / "model"), "--calibration", str(folder / "rows.csv"), "--name", "theirs"]
    assert main([*arguments, "--repository", str(models), "--gate-texts", "21"]) == 1
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    assert missed in {check["name"] for check in report["checks"] if check["holds"] is False}
    assert not (models / "theirs").exists()


def test_class_numbers_in_the_rows_mean_the_classes(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("bert")
    with (folder / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "numbers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((row["text"], LABELS.index(row["label"])) for row in rows)])
    checkpoint = load(folder, "bert")
    by_name = checkpoint.calibrate(RowFiles(calibration=folder / "rows.csv"), 59)
    assert checkpoint.calibrate(RowFiles(calibration=tmp_path / "numbers.csv"), 59) == by_name


# tf#3093, #20773, #28589, fastai#3945
def test_twelve_classes_are_named_by_their_numbers_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    names = tuple(f"class {chr(ord('l') - i)}" for i in range(12))
    folder = write_folder(tmp_path / "model", "bert", labels=names)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(sorted(config["id2label"].items()))  # "0", "1", "10", "11", "2" …
    (folder / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, "bert").label_names == names
    config["id2label"] = list(names)
    (folder / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, "bert").label_names == names
    assert load(tmp_path, "bert").kind is SOFTMAX


def test_a_folder_with_a_vocabulary_alone_is_converted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "bert")
    right = load(tmp_path, "bert").encoder
    vocabulary = sorted(right.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    encoder = load(tmp_path, "bert").encoder
    for ids, expected in zip(encoder.encode(TEXTS), right.encode(TEXTS), strict=True):
        assert ids.tolist() == expected.tolist()
