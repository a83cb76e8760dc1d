"""The comparison on one graph: real processes on the suite's tiny export, and the arithmetic of its verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bet_client import Client

import serve
from benchmarks.__main__ import main
from benchmarks.compare_settings import GraphSettings
from benchmarks.errors import PeerError, ServerError, UsageError
from benchmarks.peers.ceiling import started_ceiling
from benchmarks.peers.environment import ONNX_REQUIREMENTS
from benchmarks.peers.exported import exported_folder
from benchmarks.peers.onnx_classifier import Classifier
from benchmarks.peers.right_answers import RightAnswers
from benchmarks.peers.systems import OURS, Setting
from benchmarks.same_graph import (
    ALONE,
    FASTAPI,
    GROUPS,
    IN_PROCESS,
    ONE_BY_ONE,
    Figure,
    GraphOutcome,
    best,
    compare_same_graph,
)
from benchmarks.same_graph_report import judge_same_graph, table_same_graph
from benchmarks.texts import load_texts

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)  # has what the peers need, if not their faster event loop
NAMES = (OURS, FASTAPI, IN_PROCESS, ONE_BY_ONE, OURS + ALONE, IN_PROCESS + ALONE)


def test_the_classifier_of_the_peers_answers_as_the_server_does_alone_and_joined(
    repository: Path, server: serve.Server
) -> None:
    texts = [*load_texts(sample=12).texts, "x", "[SEP] [CLS] is plain text"]
    with exported_folder(repository, "bet") as folder:
        classifier = Classifier(folder, 1)
        alone = [classifier.answer([text])[0] for text in texts]
        joined = classifier.answer(texts)
    with Client(server.grpc_url) as client:
        served = [client.predict(text) for text in texts]
    for one, other, right in zip(alone, joined, served, strict=True):
        assert one.label == other.label == right.label
        assert one.probabilities == pytest.approx(list((right.probabilities or {}).values()), abs=1e-5)
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_a_tokenizer_that_reads_the_golden_texts_otherwise_is_refused(repository: Path, tmp_path: Path) -> None:
    with exported_folder(repository, "bet") as folder:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name in ("model.onnx", "tokenizer.json"):
            (tmp_path / name).symlink_to((folder / name).resolve())
    manifest["tokenizer"]["golden"][0]["ids"][0] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ValueError, match="gives other ids than at export"):
        Classifier(tmp_path, 1)


def test_an_ensemble_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(ServerError, match="absent is not in"):  # noqa: SIM117
        with exported_folder(repository, "absent"):
            pass


def test_the_ceiling_counts_answers_that_are_not_the_right_ones(repository: Path) -> None:
    texts = ["A fine film.", "A dull film that never ends."]
    with exported_folder(repository, "bet") as folder:
        classifier = Classifier(folder, 1)
        probabilities = [classifier.answer([text])[0].probabilities for text in texts]
        right = RightAnswers(tuple(classifier.labels), np.array(probabilities))
        off = RightAnswers(tuple(classifier.labels), np.array([probabilities[0], probabilities[1][::-1]]))
        groups = {"right": (texts, right), "off": (texts, off)}
        with started_ceiling(Setting(2, 1), PYTHON, folder, groups) as ceiling:
            good = ceiling.turn("right", 2, 0.1, 1e-5)
            bad = ceiling.turn("off", 2, 0.1, 1e-5)
    assert good.wrong == 0
    assert good.largest_difference <= 1e-5
    assert good.right == 2 * len(good.latencies)  # two texts in each execution
    assert bad.wrong == bad.right > 0
    assert bad.largest_difference > 1e-5


def test_a_ceiling_that_cannot_start_says_why(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"ended with 1: .*manifest\.json"):  # noqa: SIM117
        with started_ceiling(Setting(1, 1), PYTHON, tmp_path, {}):
            pass


def test_the_whole_comparison_of_the_tiny_export(repository: Path, tmp_path: Path) -> None:
    """Our server, FastAPI in each setting and the ceiling, all real; what they reach means nothing here."""
    settings = GraphSettings(
        repository=repository,
        short_tokens=8,
        long_tokens=40,
        callers=4,
        joined=(1, 4),
        seconds=0.2,
        warm_up=0.05,
        choosing=0.15,
        rounds=2,
        texts=8,
    )
    said: list[str] = []
    texts = load_texts(sample=40).texts
    outcome = compare_same_graph(settings, texts, texts[:10], PYTHON, said.append)
    assert {(f.name, f.group, f.round) for f in outcome.figures} == {
        (name, group, number) for name in NAMES for group in GROUPS for number in (1, 2)
    }
    assert outcome.tokens["short"] == (8, 8, 8)
    assert outcome.tokens["long"] == (40, 40, 40)
    assert outcome.tokens["mixed"][0] < outcome.tokens["mixed"][2]
    tried = {figure.setting for figure in outcome.tried if figure.name == FASTAPI}
    assert {label.split()[1] for label in tried} == {"sync", "async"}
    report = judge_same_graph(settings, outcome)
    checks = {check.name: check for check in report.checks}
    assert checks["wrong_answers"].holds, report.details["faults"]
    assert (checks["answers"].value or 0) > 100
    assert all(figure.largest_difference <= 1e-5 for figure in outcome.figures)
    written = json.loads(report.write(tmp_path).read_text(encoding="utf-8"))
    assert len(written["table"]) == len(NAMES) * len(GROUPS)


def _figure(name: str, group: str, number: int, rate: float, **more: float) -> Figure:
    p50, p99, wrong = more.get("p50", 1.0), more.get("p99", 2.0), int(more.get("wrong", 0))
    return Figure(name, "2 × 1", group, number, rate, p50, p99, 100, wrong, (), 1e-7, 0.1, 0.0)


def _outcome(**changed: dict[str, float]) -> GraphOutcome:
    """Three rounds, each half as fast as the one before, in which ours meets every target by a little."""
    values: dict[str, dict[str, float]] = {
        OURS: {"rate": 1700, "p99": 6.0},
        FASTAPI: {"rate": 1000, "p99": 10.0},
        IN_PROCESS: {"rate": 2000},
        ONE_BY_ONE: {"rate": 1800},
        OURS + ALONE: {"rate": 900, "p50": 1.5, "p99": 3.0},
        IN_PROCESS + ALONE: {"rate": 2000, "p50": 0.6, "p99": 1.1},
    }
    figures = []
    for name, of in values.items():
        now = {**of, **changed.get(name, {})}
        rate = now.pop("rate")
        figures += [_figure(name, group, n, rate / 2**n, **now) for group in GROUPS for n in (1, 2, 3)]
    return GraphOutcome(tuple(figures), (), dict.fromkeys(GROUPS, (20, 20.0, 20)), {})


def test_figures_within_their_targets_hold_though_the_rounds_differ() -> None:
    report = judge_same_graph(GraphSettings(), _outcome())
    checks = {check.name: check for check in report.checks}
    assert report.holds
    assert checks["ratio_fastapi_onnx_short"].value == pytest.approx(1.7)
    assert checks["p99_ratio_fastapi_onnx_mixed"].value == pytest.approx(0.6)
    assert checks["share_of_in_process_long"].value == pytest.approx(0.85)
    assert checks["added_latency_p50_short"].value == pytest.approx(0.9)
    assert checks["added_latency_p99_short"].value == pytest.approx(1.9)
    assert "850 (638–850)" not in table_same_graph(_outcome())
    assert "425 (319–638)" in table_same_graph(_outcome())


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({FASTAPI: {"rate": 1200}}, {"ratio_fastapi_onnx_short"}),
        ({FASTAPI: {"rate": 1290}}, {"ratio_fastapi_onnx_short", "ratio_fastapi_onnx_mixed"}),
        ({OURS: {"p99": 8.0}}, {f"p99_ratio_fastapi_onnx_{group}" for group in GROUPS}),
        ({IN_PROCESS: {"rate": 2600}}, {f"share_of_in_process_{group}" for group in GROUPS}),
        ({OURS + ALONE: {"p50": 1.7}}, {f"added_latency_p50_{group}" for group in GROUPS}),
        ({OURS + ALONE: {"p99": 3.2}}, {f"added_latency_p99_{group}" for group in GROUPS}),
        ({FASTAPI: {"wrong": 1}}, {"wrong_answers"}),
    ],
)
def test_each_target_decides(changed: dict[str, dict[str, float]], missed: set[str]) -> None:
    report = judge_same_graph(GraphSettings(), _outcome(**changed))
    assert {check.name for check in report.checks if check.holds is False} == missed


def test_the_best_is_the_fastest_in_its_group_and_of_one_caller_the_one_with_the_least_latency() -> None:
    def tried(name: str, setting: str, rate: float, p50: float) -> Figure:
        return Figure(name, setting, "short", 0, rate, p50, 9.0, 1, 0, (), 0.0, 0.0, 0.0)

    figures = [
        tried(ONE_BY_ONE, "a", 100, 1.0),
        tried(IN_PROCESS, "b", 200, 9.0),
        tried(IN_PROCESS + ALONE, "c", 100, 2.0),
        tried(IN_PROCESS + ALONE, "d", 90, 1.0),
        _figure(IN_PROCESS, "long", 0, 500),
    ]
    assert best(figures, (IN_PROCESS, ONE_BY_ONE), "short") == "b"
    assert best(figures, (ONE_BY_ONE,), "short") == "a"
    assert best(figures, (IN_PROCESS + ALONE,), "short") == "d"


def test_both_sides_execute_with_the_same_runtime_and_tokenizer() -> None:
    ours = dict(_pins(ROOT / "requirements.lock"))
    theirs = dict(_pins(ONNX_REQUIREMENTS))
    for name in ("onnxruntime", "tokenizers"):
        assert theirs[name] == ours[name]
    source = "".join(path.read_text(encoding="utf-8") for path in ONNX_REQUIREMENTS.parent.glob("*onnx*.py"))
    assert "import benchmarks" not in source
    assert "from benchmarks" not in source


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"callers is 0.*joined is \(2,\).*seconds is 0"):
        GraphSettings(callers=0, joined=(2,), seconds=0)
    assert main(["compare", "--lengths", "16"]) == 2
    assert "--lengths goes with --checkpoint" in capsys.readouterr().err


def _pins(path: Path) -> list[tuple[str, str]]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [(name, version) for line in lines if "==" in line for name, version in [line.split("==", 1)]]
