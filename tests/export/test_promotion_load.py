"""200 requests/s for the whole of a promotion and of a rollback: none fails, none is mixed, and they switch once.

    make test-heavy PYTEST="tests/export/test_promotion_load.py -s"

prints the figures and writes them to build/promotion_load/report.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from second_versions import add_version
from traffic import Traffic, Truth, judge

import serve
from benchmarks.texts import load_texts
from export import versions
from export.repository import Names, Pins
from export.rollout import PromoteOptions, promote, rollback
from export.rows import RowFiles
from verdict import Report

BET = Names("bet")
RATE = 200
REVIEWS = Path(__file__).parent / "reviews.jsonl"


@pytest.mark.heavy
def test_at_200_requests_a_second_a_promotion_and_a_rollback_fail_and_mix_nothing(
    repository: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    with serve.start(models, timeout=180, log_path=tmp_path / "triton.log") as server:  # kept where the test fails
        add_version(models, max_length=64)
        versions.restore(models, BET, Pins(1))
        # Of all lengths; those of more than 64 tokens, which version 2 cuts, would show a mix of steps.
        texts = load_texts().texts
        truths = {number: Truth.of(models, number, texts) for number in (1, 2)}
        assert sum(text.tokens > 64 for text in truths[1].texts) > 100
        report = Report("promotion_load")
        for action, old, new in (("promote", 1, 2), ("rollback", 2, 1)):
            with Traffic(server.grpc_url, texts, RATE) as traffic:
                if action == "promote":
                    files = RowFiles(texts=REVIEWS)
                    switch = promote(
                        PromoteOptions("bet", 2, models, server.grpc_url, files=files, max_flips=1, max_latency_ratio=9)
                    )
                else:
                    switch = rollback("bet", models, server.grpc_url)
            assert switch.report is not None
            assert switch.holds, f"{switch.outcome}\n{switch.report.table()}\n{server.log_tail()}"
            seen = judge(traffic.calls, traffic.labels, truths, old, new)
            sent = [call.sent for call in traffic.calls]
            report.add(f"{action}_requests", seen.requests, "requests", f">= {RATE * 5}")
            report.add(f"{action}_rate", seen.requests / (max(sent) - min(sent)), "requests/s", f">= {0.95 * RATE:g}")
            report.add(f"{action}_failed", len(seen.failed), "requests", "== 0")
            report.add(f"{action}_mixed", len(seen.mixed), "answers", "== 0")
            report.add(f"{action}_late", seen.late, "answers", "== 0")
            report.add(f"{action}_by_old", seen.by[old], "answers", "> 0")
            report.add(f"{action}_by_new", seen.by[new], "answers", "> 0")
            report.add(f"{action}_overlap", seen.overlap_ms, "ms")
            report.add(f"{action}_latency_p99", seen.p99_ms, "ms")
            switched = next(check.value for check in switch.report.checks if check.name == "switch")
            report.add(f"{action}_switch", switched, "ms")
            report.details[f"{action}_failures"] = seen.failed[:5]
    report.write()
    print(f"\n{report.table()}")
    assert report.holds
