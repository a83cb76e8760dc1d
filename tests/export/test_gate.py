"""The gate must be able to fail: each kind of broken graph is refused, and the repository stays as it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from export import staged
from export.__main__ import main
from export.answers import Answers, compare
from export.checkpoints import load_checkpoint
from export.graph import ServedClassifier
from export.outputs import BET
from export.parity import Parity, run, torch_executor, ways_of_asking
from export.pieces import vocabulary
from export.texts import GateText, choose_texts
from train.checkpoint import load_production, seal
from train.model.posterior import Posterior

Break = Callable[[onnx.ModelProto, Posterior], None]
REVIEWS = Path(__file__).parent / "reviews.jsonl"


@pytest.fixture
def good_onnx(repository: Path) -> Path:
    return repository / "bet_classifier" / "1" / "model.onnx"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], None]) -> None:
    tensor = initializer(model, name)
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def off_by_five_percent(model: onnx.ModelProto, right: torch.Tensor) -> None:
    """The exporter folds the exponential of a posterior's number into a constant, which is found by its value."""
    value = right.exp().numpy()
    (found,) = (
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and tuple(tensor.dims) == value.shape
        and np.allclose(numpy_helper.to_array(tensor), value, rtol=1e-6)
    )
    found.CopyFrom(numpy_helper.from_array(value * np.float32(1.05), found.name))


def wrong_temperature(model: onnx.ModelProto, posterior: Posterior) -> None:
    off_by_five_percent(model, posterior.log_evidence_scale.detach())


def wrong_variance(model: onnx.ModelProto, posterior: Posterior) -> None:
    off_by_five_percent(model, posterior.log_variance.detach()[0])


def one_weight_changed(model: onnx.ModelProto, _: Posterior) -> None:
    change(model, "trunk.words.from_readout.bias", lambda v: v.__setitem__(0, v[0] + 0.01))


def nan_weight(model: onnx.ModelProto, _: Posterior) -> None:
    change(model, "trunk.words.from_readout.bias", lambda v: v.__setitem__(0, np.nan))


def wrong_threshold(model: onnx.ModelProto, _: Posterior) -> None:
    change(model, "risk_threshold", lambda v: v.fill(10.0))


def swapped_labels(model: onnx.ModelProto, _: Posterior) -> None:
    names = initializer(model, "label_names")
    names.string_data[:] = names.string_data[::-1]


def another_vocabulary(model: onnx.ModelProto, _: Posterior) -> None:
    names = initializer(model, "evidence_ngrams_names")
    names.string_data[:] = names.string_data[::-1]


def activation(operator: str) -> Break:
    """The answer passed through one more operator: a sigmoid where a softmax was meant, or the logarithm left in."""

    def edit(model: onnx.ModelProto, _: Posterior) -> None:
        node = next(n for n in model.graph.node if "probabilities" in n.output)
        node.output[list(node.output).index("probabilities")] = "before"
        for other in model.graph.node:
            other.input[:] = ["before" if name == "probabilities" else name for name in other.input]
        model.graph.node.append(onnx.helper.make_node(operator, ["before"], ["probabilities"]))

    return edit


def add(checkpoint: Path, folder: Path, *more: str) -> int:
    return main(
        ["add", str(checkpoint), "--repository", str(folder), "--texts", str(REVIEWS), "--gate-texts", "21", *more]
    )


@pytest.mark.parametrize(
    ("break_it", "missed"),
    [
        (wrong_temperature, "parity_onnx"),
        (wrong_variance, "parity_onnx"),
        (one_weight_changed, "parity_onnx"),
        (nan_weight, "non_finite"),
        (wrong_threshold, "review_flips"),
        (another_vocabulary, "ngram_flips"),
        (swapped_labels, "label_flips"),
        (activation("Sigmoid"), "parity_onnx"),
        (activation("Log"), "parity_onnx"),
    ],
)
def test_a_broken_graph_is_refused_and_nothing_enters_the_repository(  # noqa: PLR0917
    break_it: Break,
    missed: str,
    tiny_checkpoint: Path,
    repository: Path,
    good_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_broken(classifier: ServedClassifier, labels: Sequence[str], path: Path, notes: object) -> None:
        model = onnx.load(good_onnx)
        break_it(model, classifier.model.posterior)
        onnx.save(model, path)

    monkeypatch.setattr(staged, "write_onnx", write_broken)
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    before = contents(folder)
    assert add(tiny_checkpoint, folder) == 1
    assert contents(folder) == before
    assert not list(tmp_path.glob(".models-staging-*"))
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    assert missed in {check["name"] for check in report["checks"] if check["holds"] is False}
    assert report["version"] is None
    assert len(report["parity"]["worst"]["text"]) <= 80


def test_a_tokenizer_step_that_breaks_its_contract_is_refused(
    tiny_checkpoint: Path, good_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "model.py"
    step.write_text(
        staged.TOKENIZER_STEP.read_text().replace('"input_ids", input_ids)', '"input_ids", input_ids.astype(np.int32))')
    )
    assert step.read_text() != staged.TOKENIZER_STEP.read_text()
    monkeypatch.setattr(staged, "TOKENIZER_STEP", step)
    monkeypatch.setattr(staged, "write_onnx", lambda classifier, labels, path, notes: shutil.copyfile(good_onnx, path))
    assert add(tiny_checkpoint, tmp_path / "models") == 1
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    assert "served_texts" in {check["name"] for check in report["checks"] if check["holds"] is False}
    assert "bet" in report["served_error"]
    assert not (tmp_path / "models" / "bet").exists()


# tf#17468
def test_a_nan_on_both_sides_is_no_agreement(
    tiny_checkpoint: Path,
    good_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["trunk.words.from_readout.bias"][0] = torch.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    seal(checkpoint)

    def write_same(classifier: ServedClassifier, labels: Sequence[str], path: Path, notes: object) -> None:
        model = onnx.load(good_onnx)
        nan_weight(model, classifier.model.posterior)
        onnx.save(model, path)

    monkeypatch.setattr(staged, "write_onnx", write_same)
    assert add(checkpoint, tmp_path / "models", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert "probabilities" in report["parity"]["non_finite"]
    assert not (tmp_path / "models" / "bet").exists()


@pytest.fixture(scope="session")
def some_texts(tiny_checkpoint: Path) -> list[GateText]:
    checkpoint = load_checkpoint(tiny_checkpoint)
    rows = [json.loads(line)["text"] for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    return choose_texts(checkpoint.encoder, rows, None, count=42)


def answers_of(checkpoint: Path, texts: Sequence[GateText]) -> tuple[Answers, ServedClassifier, tuple[str, ...]]:
    loaded = load_production(checkpoint)
    pieces = vocabulary(loaded.tokenizer, loaded.model.config.vocab_size)
    classifier = ServedClassifier(loaded.model, loaded.calibration.decide(), pieces).eval()
    executor = torch_executor(classifier, BET, loaded.label_names)
    return (
        run(executor, [t.ids for t in texts], [([i], False) for i in range(len(texts))]),
        classifier,
        loaded.label_names,
    )


def test_a_text_whose_answer_depends_on_its_neighbours_is_found(
    tiny_checkpoint: Path, some_texts: list[GateText]
) -> None:
    reference, classifier, labels = answers_of(tiny_checkpoint, some_texts)
    honest = torch_executor(classifier, BET, labels)

    def leaking(ids: np.ndarray, lengths: np.ndarray) -> Answers:
        answer = honest(ids, lengths)
        if len(lengths) < 2:
            return answer
        return dataclasses.replace(answer, probabilities=answer.probabilities + np.float32(1e-4))

    parity = Parity(reference, some_texts)
    parity.check("leaking", leaking)
    ways = parity.differences["leaking"]
    assert ways["alone"].probabilities == 0
    assert ways["joined"].probabilities > 5e-5
    assert ways["filled"].probabilities > 5e-5
    assert parity.as_dict()["worst"]["side"] == "leaking"


def test_every_way_of_asking_covers_every_text_once_and_joins_different_lengths(some_texts: list[GateText]) -> None:
    documents = [text.ids for text in some_texts]
    ways = ways_of_asking(documents)
    for groups in ways.values():
        assert sorted(i for group, _ in groups for i in group) == list(range(len(documents)))
    sizes = {len(group) for group, _ in ways["joined"]}
    assert {2, 3, 7, 16} <= sizes
    assert any(len({len(documents[i]) for i in group}) > 1 for group, _ in ways["joined"])


def test_a_padded_model_is_asked_in_the_same_ways_for_fewer_tokens(some_texts: list[GateText]) -> None:
    """Joined rows cost as much as the longest, so texts of similar lengths are joined, and some of every length."""
    documents = [text.ids for text in some_texts]
    sizes = [len(ids) for ids in documents]

    def tokens(groups: Sequence[tuple[list[int], bool]]) -> int:
        return sum(len(group) * max(sizes[i] for i in group) for group, _ in groups)

    ways, mixed = ways_of_asking(documents, padded=True), ways_of_asking(documents)
    for way in ("joined", "filled"):
        assert sorted(i for group, _ in ways[way] for i in group) == list(range(len(documents)))
        assert {2, 3, 7} <= {len(group) for group, _ in ways[way]}
        assert any({min(sizes), max(sizes)} <= {sizes[i] for i in group} for group, _ in ways[way])
        assert tokens(ways[way]) < tokens(mixed[way]) * 2 / 3
    assert ways["alone"] == mixed["alone"]


def test_the_worst_text_is_named_by_position_bucket_and_length(
    tiny_checkpoint: Path, some_texts: list[GateText]
) -> None:
    reference, *_ = answers_of(tiny_checkpoint, some_texts)
    shifted = reference.probabilities.copy()
    shifted[5] += np.float32(0.01)
    parity = Parity(reference, some_texts)
    parity.add("shifted", {"alone": dataclasses.replace(reference, probabilities=shifted)})
    worst = parity.as_dict()["worst"]
    assert (worst["position"], worst["bucket"], worst["tokens"]) == (5, some_texts[5].bucket, some_texts[5].tokens)
    assert worst["difference"] == pytest.approx(0.01, rel=1e-3)
    assert parity.by_bucket["shifted"][some_texts[5].bucket] == pytest.approx(0.01, rel=1e-3)


def test_a_single_flip_of_review_is_a_failure(tiny_checkpoint: Path, some_texts: list[GateText]) -> None:
    reference, *_ = answers_of(tiny_checkpoint, some_texts)
    flipped = reference.review.copy()
    flipped[3] = ~flipped[3]
    assert compare(reference, dataclasses.replace(reference, review=flipped)).review_flips == 1


def test_an_ngram_may_change_places_among_equals_and_be_no_other() -> None:
    def named(ngrams: str, *nats: float) -> Answers:
        return Answers(
            probabilities=np.full((1, 2), 0.5, np.float32),
            evidence_ngrams=np.array([ngrams.split()]),
            evidence_nats=np.array([nats], np.float32),
        )

    reference = named("good bad dull", 2.0, -1.0, 0.5)
    for other, flips in (
        (reference, 0),
        (named("good bad fine", 2.0, -1.0, 0.50001), 0),  # chosen otherwise among equals
        (named("good fine dull", 2.0, -1.0, 0.5), 1),
        (named("good bad dull", 2.0, 1.0, 0.5), 1),  # another sign
        (named("good bad dull", 2.0, -1.01, 0.5), 1),
        (dataclasses.replace(reference, evidence_ngrams=None), 1),
    ):
        assert compare(reference, other).ngram_flips == flips
    swapped = compare(named("good bad dull", 1.0, -1.0, 0.5), named("bad good dull", -1.0, 1.0, 0.5))
    assert (swapped.ngram_flips, swapped.evidence) == (0, 0)
    assert compare(reference, named("good bad dull", 2.0, -1.01, 0.5)).evidence == pytest.approx(0.01, rel=1e-3)
