"""`export promote` and `export rollback`: from the version that answers to another, without a failed or mixed answer.

A promotion: the version is whole on disk → its steps are loaded beside the old ones → a challenger ensemble over them
is asked beside the main one (`export.challenger`) → the pins are written by rename and the ensembles loaded, which
takes milliseconds while requests under way finish on the old version → the main ensemble is watched (`export.watch`).
What leaves its bounds before the switch refuses the version, and after it returns to the version before. A rollback has
no comparison: it goes back at once and watches. Each step leaves an audit line.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bet_client import BetClientError

from export import versions
from export.answers import Answers
from export.audit import Audit, audit_file
from export.challenger import Asked, add_changes, add_latencies, add_truth, ask_alone, ask_in_turns
from export.control import Control, LoadError
from export.errors import ExportError, RepositoryError
from export.manifest import encoder_of, kind_of
from export.parity import tolerances_of
from export.repository import MAX_TEXT_BYTES, Names, Pins
from export.rows import RowFiles, texts_of
from export.served import Protocol
from export.texts import GateText
from export.verify import checkpoint_of, files_of, graph_answers, texts_as_they_stand
from export.watch import watch
from train.errors import TrainError
from train.tokenizer import load_tokenizer
from verdict import Report

COMPARED_TEXTS = 100
_BROKEN = re.compile(r"version (\d+) is at UNAVAILABLE state")  # Triton names the version that made a load fail
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromoteOptions:
    """What `export promote` was asked for; `rollback` has no version, no texts and no bounds.

    Attributes:
        url: host:port of a running server that is to switch; None changes the files only.
        max_flips: largest share of texts that may get another label than before.
        max_latency_ratio: largest ratio of the new version's median latency to the old one's.
        watch: seconds to watch the answers after the switch.
    """

    name: str
    version: int
    repository: Path = Path("model_repository")
    url: str | None = None
    protocol: Protocol = "grpc"
    files: RowFiles = field(default_factory=RowFiles)
    max_flips: float = 0.1
    max_latency_ratio: float = 2.0
    watch: float = 5.0


@dataclass(frozen=True)
class Switch:
    """What came of a promotion or rollback.

    Attributes:
        version: that answers now.
        before: that answered before; None where none did.
        outcome: in one sentence.
        report: what was measured; None where files alone were changed.
    """

    version: int | None
    before: int | None
    outcome: str
    report: Report | None = None

    @property
    def holds(self) -> bool:
        """Whether the version that was asked for answers, and every check held."""
        return self.report is None or self.report.holds


def promote(options: PromoteOptions) -> Switch:
    """Make a version the one that answers, if it stands the comparison.

    Raises:
        ExportError: if it cannot be served at all, another promotion is under way, or the server does not answer;
            nothing is changed then. A version that is refused, or returned from, is in the result instead.
    """
    names = Names(options.name)
    with versions.switching(options.repository, names):
        manifest = versions.require_whole(options.repository, names, options.version)
        labels, kind = tuple(manifest["labels"]), kind_of(manifest)
        versions.require_same_answers(options.repository, names, labels, kind)
        versions.sweep_staging(options.repository)
        if options.url is None:
            return _on_disk(options, names, "promote")
        with Control(options.url, options.protocol) as server:
            promotion = _Promotion(options, names, server, manifest)
            if promotion.live is not None:
                versions.require_same_answers(options.repository, names, labels, kind, answering=promotion.live)
            return promotion.run()


def rollback(
    name: str,
    repository: Path = Path("model_repository"),
    url: str | None = None,
    protocol: Protocol = "grpc",
    watch: float = 5.0,
) -> Switch:
    """Make the version before the last `add` or `promote` answer again, at once.

    Raises:
        ExportError: if there is none, or it cannot be served, or the server does not answer.
    """
    names = Names(name)
    with versions.switching(repository, names):
        pins = versions.read_pins(repository, names)
        if pins is None or pins.previous is None:
            raise RepositoryError(f"{name!r} has no version to go back to; `python -m export list {name}` shows which")
        manifest = versions.require_whole(repository, names, pins.previous)
        options = PromoteOptions(name, pins.previous, repository, url, protocol, watch=watch)
        if url is None:
            return _on_disk(options, names, "rollback")
        with Control(url, protocol) as server:
            return _Promotion(options, names, server, manifest, action="rollback").run()


def _on_disk(options: PromoteOptions, names: Names, action: str) -> Switch:
    versions.remove_challengers(options.repository, names)
    before = versions.pin(options.repository, names, options.version)
    audit = Audit(audit_file(options.repository, names), options.name, action, before.version, options.version)
    audit.write("pinned on disk", "done")
    outcome = (
        f"{options.name!r} answers with version {options.version} (on disk; a running server takes it with --url); "
        f"before it was {before.version}"
    )
    return Switch(options.version, before.version, outcome)


class _Refused(Exception):
    """The version must not answer; the message says why."""


class _Promotion:
    """One promotion or rollback on one running server."""

    def __init__(
        self,
        options: PromoteOptions,
        names: Names,
        server: Control,
        manifest: Mapping[str, Any],
        action: str = "promote",
    ) -> None:
        self.options = options
        self.names = names
        self.server = server
        self.manifest = manifest
        self.number = options.version
        self.live = server.pinned(names.ensemble)
        # The one over TorchScript follows where the server has it.
        self.ensembles = [e for e in names.ensembles if e == names.ensemble or server.has(e)]
        self.filed = versions.read_pins(options.repository, names)
        self.audit = Audit(audit_file(options.repository, names), options.name, action, self.live, self.number)
        self.report = Report(action)
        self.report.details.update(
            {"name": options.name, "from": self.live, "to": self.number, "url": options.url, "action": action}
        )
        self.limit = int(manifest["tokenizer"]["max_length"])
        self.tolerances = tolerances_of(kind_of(manifest), len(manifest["labels"]))
        self.usual: dict[str, list[float]] | None = None  # latencies of the version before, by ensemble

    @property
    def url(self) -> str:
        return self.server.url

    def run(self) -> Switch:
        """Do it; a version that is refused or returned from is a result, not an error."""
        fast = self.audit.action == "rollback"
        self.audit.write("begun", "done", ensembles=self.ensembles, pins=self.filed and self.filed.version)
        refusal = None
        try:
            self._remove_challengers()
            self._load_steps(only_missing=fast)
            if not fast:
                texts, truth = self._compare()
        except (_Refused, LoadError, BetClientError) as error:
            refusal = str(error)
        except BaseException as error:
            self.audit.write("interrupted", "failed", error=repr(error))
            raise
        finally:
            with contextlib.suppress(RepositoryError):  # a server that is gone; the next promotion removes them
                self._remove_challengers()
        if refusal is not None:
            return self._refuse(refusal)
        try:
            self._switch()
        except RepositoryError as error:
            self.report.add("loaded", 0, "ensembles", f"== {len(self.ensembles)}")
            return self._return(str(error))
        except BaseException as error:
            self._return(f"interrupted: {error!r}")
            raise
        try:
            if fast:
                texts = self._golden()
                truth = self._truth(texts)
            self._watch(texts, truth)
        except (_Refused, BetClientError) as error:
            if fast:
                return self._stay(str(error))
            return self._return(str(error))
        except BaseException as error:
            if not fast:
                self._return(f"interrupted: {error!r}")
            raise
        self.audit.write("answers", "done")
        before = "none" if self.live is None else str(self.live)
        outcome = f"{self.options.name!r} answers with version {self.number} at {self.url}; before it was {before}"
        return Switch(self.number, self.live, outcome, self.report)

    def _load_steps(self, *, only_missing: bool) -> None:
        classifiers = [self.names.classifier_of(ensemble) for ensemble in self.ensembles]
        with self._timed("load"):
            for model in (self.names.tokenizer, *classifiers):
                if only_missing and self.server.has(model, self.number):
                    continue
                try:
                    self.server.load(model)
                except LoadError as error:
                    self.report.add("loaded", 0, "steps", f"== {1 + len(classifiers)}")
                    other = _BROKEN.search(str(error))
                    if other is not None and int(other[1]) != self.number:
                        raise LoadError(
                            f"version {other[1]}, which the server loads as well, cannot be loaded; `python -m export "
                            f"remove {self.options.name} {other[1]}` takes it out of the way ({error})"
                        ) from error
                    raise
        self.audit.write("steps loaded", "done")

    def _compare(self) -> tuple[list[GateText], Answers]:
        texts, source = self._texts()
        if not texts:
            raise _Refused("there is no text to compare on; give some with --texts FILE")
        self.report.details["texts"] = source
        _log.info("comparing on %d texts: %s", len(texts), source)
        truth = self._truth(texts)
        sides: dict[str, Asked] = {}
        self.usual = {}
        for ensemble in self.ensembles:
            challenger = versions.write_challenger(self.options.repository, self.names, ensemble, self.number)
            self.server.load(challenger)
            self.audit.write("challenger loaded", "done", ensemble=challenger)
            suffix = "" if ensemble == self.names.ensemble else "_torchscript"
            if self.live is None:
                sides[f"challenger{suffix}"] = ask_alone(self.url, self.options.protocol, challenger, texts, self.limit)
                continue
            old, new = ask_in_turns(self.url, self.options.protocol, (ensemble, challenger), texts, self.limit)
            sides[f"challenger{suffix}"] = new
            if old.answered():
                self.usual[ensemble] = old.usual()
            if not suffix:
                add_changes(self.report, old, new, self.options.max_flips)
            self.report.add(f"errors_champion{suffix}", len(old.errors), "calls")
            add_latencies(self.report, old, new, self.options.max_latency_ratio, suffix)
        add_truth(self.report, truth, sides, texts, self.tolerances)
        missed = [check.name for check in self.report.checks if check.holds is False]
        self.audit.write("compared", "refused" if missed else "done", texts=len(texts), **self._measured())
        if missed:
            raise _Refused(f"beyond its bound: {', '.join(missed)}")
        return texts, truth

    def _switch(self) -> None:
        versions.pin(self.options.repository, self.names, self.number, answering=self.live)
        self.audit.write("pins written", "done")
        began = time.perf_counter()
        for ensemble in self.ensembles:
            self.server.load(ensemble)
        took = (time.perf_counter() - began) * 1000
        self.report.add("switch", took, "ms")
        self.audit.write("ensembles loaded", "done", ms=round(took, 1))

    def _watch(self, texts: Sequence[GateText], truth: Answers) -> None:
        seen = watch(
            self.url,
            self.options.protocol,
            self.ensembles,
            texts=texts,
            truth=truth,
            tolerances=self.tolerances,
            limit=self.limit,
            seconds=self.options.watch,
            before=self.usual or None,
            max_ratio=self.options.max_latency_ratio,
        )
        seen.add_to(self.report, self.options.max_latency_ratio if self.usual else None)
        counts = {
            "asks": seen.asks,
            "errors": seen.errors,
            "wrong": seen.wrong,
            "latency_ratio": seen.latency_ratio and round(seen.latency_ratio, 2),
        }
        self.audit.write("watched", "done" if seen.reason is None else "failed", **counts, reason=seen.reason)
        if seen.reason is not None:
            raise _Refused(seen.reason)

    def _refuse(self, reason: str) -> Switch:
        """The old version has answered all the time; a restart must not bring up the refused one either."""
        if self.filed and self.filed.version == self.number != self.live and self.live is not None:
            self._restore()
        self.audit.write("refused", "refused", reason=reason)
        self.report.details["reason"] = reason
        still = "nothing answers" if self.live is None else f"version {self.live} answers on"
        outcome = f"refused: version {self.number} of {self.options.name!r}: {reason}; {still}"
        if self.report.holds:  # such as a client that could not be opened
            self.report.add("promoted", 0, "versions", "== 1")
        return Switch(self.live, self.live, outcome, self.report)

    def _return(self, reason: str) -> Switch:
        """Back to what answered before, on disk and in the server."""
        self.report.details["reason"] = reason
        problems = []
        try:
            self._restore()
        except RepositoryError as error:
            problems.append(str(error))
        for ensemble in self.ensembles:
            try:
                self.server.unload(ensemble) if self.live is None else self.server.load(ensemble)
            except RepositoryError as error:
                problems.append(str(error))
        try:
            now = self.server.pinned(self.names.ensemble)
        except RepositoryError as error:
            now = None
            problems.append(str(error))
        back = now == self.live
        self.audit.write("returned", "returned" if back else "failed", reason=reason, answers=now, problems=problems)
        self.report.add("returned", float(back), "versions", "== 1")
        self.report.add("promoted", 0, "versions", "== 1")
        state = "nothing answers again" if self.live is None else f"version {self.live} answers again"
        if not back:
            state = f"returning to {self.live} failed ({'; '.join(problems)}): restart the server, its files are right"
        outcome = f"returned from version {self.number} of {self.options.name!r}: {reason}; {state}"
        return Switch(now, self.live, outcome, self.report)

    def _stay(self, reason: str) -> Switch:
        """A rollback whose answers are not right: there is no third version that anybody asked for."""
        self.report.details["reason"] = reason
        self.audit.write("answers", "failed", reason=reason)
        outcome = (
            f"rolled back to version {self.number} of {self.options.name!r}, and its answers are not right: {reason}"
        )
        return Switch(self.number, self.live, outcome, self.report)

    def _restore(self) -> None:
        if self.filed is None:
            return
        pins = self.filed
        if self.live is not None and self.live != pins.version:  # `add` had pinned another one on disk
            pins = Pins(self.live, pins.previous if pins.previous != self.live else None)
        versions.restore(self.options.repository, self.names, pins)

    def _remove_challengers(self) -> None:
        versions.challengers(self.options.repository, self.names)  # raises where another model has such a name
        for challenger in map(self.names.challenger, self.names.ensembles):
            if self.server.has(challenger):
                self.server.unload(challenger)
        removed = versions.remove_challengers(self.options.repository, self.names)
        if removed:
            self.audit.write("challengers removed", "done", ensembles=removed)

    def _truth(self, texts: Sequence[GateText]) -> Answers:
        return graph_answers(self.options.repository, self.names, self.number, dict(self.manifest), texts)

    def _texts(self) -> tuple[list[GateText], str]:
        """What is compared on, and where it is from."""
        files = files_of(self.options.files, dict(self.manifest))
        path = files.texts or files.calibration
        if path is not None:
            return self._sample(texts_of(path, files.text_column)), str(path)
        if not kind_of(self.manifest).padded:  # a checkpoint of our own knows its corpus
            try:
                checkpoint = checkpoint_of(dict(self.manifest))
                if checkpoint is not None:
                    return self._sample(checkpoint.held_out(RowFiles())[0]), f"held out by {checkpoint.path}"
            except (ExportError, TrainError) as error:
                _log.info("%s", error)
        return self._golden(), "the golden texts of the manifest; give your own with --texts FILE"

    def _golden(self) -> list[GateText]:
        return self._encoded([case["text"] for case in self.manifest["tokenizer"]["golden"]])

    def _sample(self, texts: Sequence[str]) -> list[GateText]:
        served = [text for text in texts if len(text.encode("utf-8", "replace")) <= MAX_TEXT_BYTES]
        order = np.random.default_rng(0).permutation(len(served))[:COMPARED_TEXTS]
        return self._encoded([served[i] for i in order])

    def _encoded(self, texts: list[str]) -> list[GateText]:
        folder = self.options.repository / self.names.tokenizer / str(self.number)
        return texts_as_they_stand(encoder_of(load_tokenizer(folder), self.manifest["tokenizer"]), texts)

    def _measured(self) -> dict[str, float]:
        kept = ("errors_", "changed_", "largest_change", "mean_change", "parity_", "latency_ratio")
        found = {c.name: c.value for c in self.report.checks if c.name.startswith(kept) and c.value is not None}
        return {name: float(f"{value:.3g}") for name, value in found.items()}

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.report.add(f"seconds_{stage}", time.perf_counter() - began, "s")
