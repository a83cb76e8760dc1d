"""Promotion on a running server: compared, switched, watched; what leaves its bounds does not answer for long."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bet_client import Client
from second_versions import BET, add_version, altered, shift_graph, slow_graph
from traffic import Traffic, Truth, judge

import serve
from export import rollout, versions
from export.__main__ import main
from export.audit import Audit, audit_file, read_audit
from export.control import Control
from export.errors import RepositoryError
from export.repository import Pins
from export.rollout import PromoteOptions, promote, rollback
from export.rows import RowFiles
from serve.leftovers import marked_processes
from serve.repository import read_repository

TEXTS = (
    "A wonderful film, and I would gladly watch it again with my whole family on a rainy Sunday afternoon.",
    "Dull, badly acted and far too long; I wanted my two hours back and so did everyone in the room with me.",
    "The first half is brilliant and the second half is a mess, and I still cannot decide whether I liked it.",
    "Every scene looks as if it had been painted, but the dialogue never once sounds like people who talk.",
    "It is not the worst that this director has made, and that is the kindest thing I can say about it. " * 3,
)


@pytest.fixture(scope="module")
def live(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, serve.Server]]:
    """A server on version 1, which has never seen the version 2 beside it."""
    models = tmp_path_factory.mktemp("live") / "models"
    shutil.copytree(repository, models)
    with serve.start(models, timeout=180) as server:
        assert add_version(models) == 2
        yield models, server
        server.stop(drain_seconds=0)  # a version whose processes were killed never unloads


@pytest.fixture
def on_first(live: tuple[Path, serve.Server]) -> Iterator[tuple[Path, serve.Server]]:
    """That server with version 1 answering, on disk and live, and version 2 as it was made."""
    models, server = live
    files = [path for model in BET.versioned for path in (models / model / "2").iterdir() if path.is_file()]
    kept = {path: path.read_bytes() for path in files}
    versions.restore(models, BET, Pins(1))
    with Control(server.grpc_url) as control:
        for ensemble in BET.ensembles:
            if control.pinned(ensemble) != 1:
                control.load(ensemble)
        audit_file(models, BET).unlink(missing_ok=True)
        yield models, server
        for path, content in kept.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
        assert versions.challengers(models, BET) == {}
        assert not any(control.has(BET.challenger(ensemble)) for ensemble in BET.ensembles)


@pytest.fixture(autouse=True)
def texts_here(tmp_path: Path, reports_here: None) -> Path:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return texts


def options(models: Path, server: serve.Server, **changes: Any) -> PromoteOptions:
    asked = {
        "name": "bet",
        "version": 2,
        "repository": models,
        "url": server.grpc_url,
        "files": RowFiles(texts=Path("texts.jsonl")),
        "max_flips": 1.0,
        "max_latency_ratio": 20.0,  # other tests use this machine as well; where speed is the subject, less
        "watch": 0.2,
    }
    return PromoteOptions(**{**asked, **changes})


def answering(server: serve.Server) -> set[int]:
    with Control(server.grpc_url) as control:
        return {version for ensemble in BET.ensembles if (version := control.pinned(ensemble)) is not None}


def steps(models: Path) -> list[tuple[str, str]]:
    return [(entry["step"], entry["outcome"]) for entry in read_audit(models, BET)]


def checks(switch: rollout.Switch) -> dict[str, Any]:
    assert switch.report is not None
    return {check.name: check for check in switch.report.checks}


def test_under_traffic_a_promotion_and_a_rollback_fail_and_mix_nothing(on_first: tuple[Path, serve.Server]) -> None:
    models, server = on_first
    truths = {number: Truth.of(models, number, TEXTS) for number in (1, 2)}
    for old, new in ((1, 2), (2, 1)):
        with Traffic(server.grpc_url, TEXTS, rate=30) as traffic:
            if new == 2:
                switch = promote(options(models, server))
            else:
                switch = rollback("bet", models, server.grpc_url, watch=0.2)
        assert switch.holds, switch.report and switch.report.table()
        assert (switch.version, switch.before) == (new, old)
        seen = judge(traffic.calls, traffic.labels, truths, old, new)
        assert (seen.failed, seen.mixed, seen.late) == ([], [], 0)
        assert min(seen.by.values()) > 0  # both were seen to answer
        assert answering(server) == {new}
        server.check(30)  # what a supervisor asks; it knows of the switch


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_command_reports_what_differs_and_leaves_an_audit_line_a_step(
    protocol: str, on_first: tuple[Path, serve.Server], capsys: pytest.CaptureFixture[str]
) -> None:
    models, server = on_first
    where = ["--repository", str(models), "--protocol", protocol]
    where += ["--url", server.grpc_url if protocol == "grpc" else server.http_url, "--watch", "0"]
    bounds = ["--texts", "texts.jsonl", "--max-flips", "1", "--max-latency-ratio", "20"]
    assert main(["promote", "bet", "2", *where, *bounds]) == 0
    report = json.loads(Path("build/promote/report.json").read_text())
    value = {check["name"]: check["value"] for check in report["checks"]}
    assert value["compared_texts"] == len(TEXTS)
    assert value["largest_change"] > 0.01
    assert 0 < value["mean_change"] <= value["largest_change"]
    assert value["parity_challenger"] <= 1e-5
    assert value["parity_challenger_torchscript"] <= 1e-5
    assert {"changed_labels", "changed_reviews", "latency_ratio", "latency_ratio_torchscript", "switch"} <= set(value)
    assert value["watch_answers"] >= 2
    assert (report["version"], report["before"]) == (2, 1)
    assert main(["rollback", "bet", *where]) == 0
    assert json.loads(Path("build/rollback/report.json").read_text())["version"] == 1
    assert versions.read_pins(models, BET) == Pins(1, 2)
    challenged = [("challenger loaded", "done")] * 2
    switched = [("pins written", "done"), ("ensembles loaded", "done"), ("watched", "done"), ("answers", "done")]
    assert steps(models) == [
        *[("begun", "done"), ("steps loaded", "done"), *challenged, ("compared", "done")],
        *[("challengers removed", "done"), *switched],
        *[("begun", "done"), ("steps loaded", "done"), *switched],
    ]
    capsys.readouterr()
    assert main(["list", "bet", "--repository", str(models), "--audit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "promote 1 -> 2  compared: done" in lines[4]
    assert "rollback 2 -> 1  answers: done" in lines[-1]


@pytest.mark.heavy
def test_a_version_that_changes_more_than_is_allowed_is_refused(on_first: tuple[Path, serve.Server]) -> None:
    models, server = on_first
    altered(models / "bet_classifier" / "2" / "model.onnx", lambda path: shift_graph(path, 8))
    _seal_again(models)
    versions.restore(models, BET, Pins(2, 1))  # as `add` leaves it: on disk, and the server has not followed
    assert main(_command(models, server, "--max-flips", "0.1")) == 1
    report = json.loads(Path("build/promote/report.json").read_text())
    missed = {check["name"] for check in report["checks"] if check["holds"] is False}
    assert "changed_labels" in missed
    assert "version 1 answers on" in report["outcome"]
    assert answering(server) == {1}
    assert versions.read_pins(models, BET) == Pins(1)  # a restart does not bring the refused one up
    assert steps(models)[-1] == ("refused", "refused")


@pytest.mark.heavy
def test_a_file_that_is_replaced_after_the_comparison_is_seen_and_returned_from(
    on_first: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, server = on_first
    graph = models / "bet_classifier" / "2" / "model.onnx"
    _after_pins(monkeypatch, lambda: altered(graph, lambda path: shift_graph(path, 0.01)))
    _require_returned(promote(options(models, server)), models, server, "did not answer text")


@pytest.mark.heavy
def test_a_version_that_gets_slow_after_the_comparison_is_returned_from(
    on_first: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, server = on_first
    graph = models / "bet_classifier" / "2" / "model.onnx"
    _after_pins(monkeypatch, lambda: altered(graph, slow_graph))
    switch = promote(options(models, server, max_latency_ratio=4.0, watch=3.0))
    _require_returned(switch, models, server, "times as long")


@pytest.mark.heavy
def test_a_version_whose_processes_die_after_the_switch_is_returned_from(
    on_first: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, server = on_first
    watch = rollout.watch

    def kill_and_watch(*arguments: Any, **named: Any) -> Any:
        theirs = [
            pid
            for pid in marked_processes(server.token)
            if b"/bet_classifier/2/model.onnx" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(theirs) >= 2
        for pid in theirs:
            os.kill(pid, signal.SIGKILL)
        return watch(*arguments, **named)

    monkeypatch.setattr(rollout, "watch", kill_and_watch)
    switch = promote(options(models, server))
    _require_returned(switch, models, server, "gave no answer")
    os.utime(models / "bet_classifier" / "2" / "model.onnx")
    with Control(server.grpc_url) as control:
        control.load("bet_classifier")  # living ones for the tests to come


@pytest.mark.heavy
def test_a_server_that_refuses_the_pins_goes_on_with_the_old_version(
    on_first: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, server = on_first
    config = models / "bet" / "config.pbtxt"
    _after_pins(monkeypatch, lambda: config.write_text("no configuration"))
    switch = promote(options(models, server))
    _require_returned(switch, models, server, "did not load 'bet'")


@pytest.mark.heavy
def test_an_interrupted_watch_goes_back(on_first: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch) -> None:
    models, server = on_first

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        promote(options(models, server))
    assert answering(server) == {1}
    assert versions.read_pins(models, BET) == Pins(1)


def test_a_version_that_is_not_whole_is_refused_before_the_server_reads_it(
    on_first: tuple[Path, serve.Server],
) -> None:
    models, server = on_first
    graph = models / "bet_classifier" / "2" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(RepositoryError, match=r"model\.onnx is not the file of the manifest"):
        promote(options(models, server))
    assert read_audit(models, BET) == []
    assert answering(server) == {1}


@pytest.mark.heavy
def test_what_a_killed_promotion_left_is_cleaned_up_by_the_next(on_first: tuple[Path, serve.Server]) -> None:
    models, server = on_first
    with Control(server.grpc_url) as control:
        control.load("bet_classifier")  # both versions are there
        challenger = versions.write_challenger(models, BET, "bet", 2)
        control.load(challenger)
        assert control.pinned(challenger) == 2
    with pytest.raises(RepositoryError, match="version 2 is pinned by 'bet_challenger'"):
        versions.remove(models, BET, 2)
    assert read_repository(models).servable() == ("bet", "bet_torchscript")  # of a restart
    staging = models.parent / ".models-staging-killed"
    staging.mkdir()
    assert promote(options(models, server)).holds
    assert not staging.exists()


def test_a_version_that_a_server_answers_with_is_not_removed(
    on_first: tuple[Path, serve.Server], capsys: pytest.CaptureFixture[str]
) -> None:
    models, server = on_first
    versions.restore(models, BET, Pins(2, 1))  # on disk another one
    for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        where = ["--repository", str(models), "--url", url, "--protocol", protocol]
        assert main(["remove", "bet", "1", *where]) == 2
        assert "with version 1: promote another first" in capsys.readouterr().err
    assert versions.numbers(models, BET) == [1, 2]


@pytest.mark.heavy
def test_ensembles_that_pin_different_versions_are_shown_and_mended(
    on_first: tuple[Path, serve.Server], capsys: pytest.CaptureFixture[str]
) -> None:
    models, _ = on_first
    main_file = (models / "bet" / "config.pbtxt").read_text()
    versions.pin(models, BET, 2)
    (models / "bet" / "config.pbtxt").write_text(main_file)  # killed between the two files
    assert versions.stray_pins(models, BET) == {"bet_torchscript": 2}
    assert main(["list", "bet", "--repository", str(models)]) == 0
    assert "'bet_torchscript' pins version 2: a switch was interrupted" in capsys.readouterr().out
    with pytest.raises(RepositoryError, match="version 2 is pinned by 'bet_torchscript'"):
        versions.remove(models, BET, 2)
    assert main(["promote", "bet", "1", "--repository", str(models)]) == 0
    assert versions.stray_pins(models, BET) == {}


def test_two_promotions_at_once_are_refused(on_first: tuple[Path, serve.Server]) -> None:
    models, server = on_first
    with versions.switching(models, BET), pytest.raises(RepositoryError, match="another promotion or rollback"):
        promote(options(models, server))


def test_a_line_that_a_crash_cut_off_does_not_hide_the_others(tmp_path: Path) -> None:
    audit = Audit(audit_file(tmp_path, BET), "bet", "promote", 1, 2)
    audit.write("begun", "done", texts=3)
    with audit_file(tmp_path, BET).open("ab") as file:
        file.write(b'{"time": "2026-')
    audit.write("refused", "refused")
    first, cut, last = read_audit(tmp_path, BET)
    assert (first["from"], first["to"], first["counts"]) == (1, 2, {"texts": 3})
    assert cut["outcome"] == "cut off"
    assert last["step"] == "refused"


def _command(models: Path, server: serve.Server, *more: str) -> list[str]:
    where = ["--repository", str(models), "--url", server.grpc_url, "--texts", "texts.jsonl"]
    return ["promote", "bet", "2", *where, "--max-latency-ratio", "20", *more]


def _after_pins(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Something happens to the files between the comparison and the moment at which the server reads them."""
    pin = versions.pin

    def pin_and_change(*arguments: Any, **named: Any) -> Pins:
        before = pin(*arguments, **named)
        change()
        return before

    monkeypatch.setattr(versions, "pin", pin_and_change)


def _require_returned(switch: rollout.Switch, models: Path, server: serve.Server, said: str) -> None:
    assert not switch.holds
    assert said in switch.outcome
    assert switch.version == 1
    assert checks(switch)["returned"].holds
    assert answering(server) == {1}
    assert versions.read_pins(models, BET) == Pins(1)
    assert steps(models)[-1] == ("returned", "returned")
    with Client(server.grpc_url, timeout=60) as client:
        assert client.predict(TEXTS[0]).truncated is False  # version 2 cuts it


def _seal_again(models: Path) -> None:
    """As if version 2 had been exported with its files as they are now."""
    from export.manifest import read_manifest  # noqa: PLC0415

    versions.seal(BET, models, 2, read_manifest(models / "bet_classifier" / "2"))
