"""`python -m train explain`: what an answer is made of adds up, and a page shows it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from train.__main__ import main
from train.checkpoint import load_production
from train.explain import explain
from train.model.posterior import class_logits
from train.prediction import components_of
from train.tokenizer import encode

TEXT = "A <b>wonderful</b> film, and the acting is great.<br />Not bad at all; I would watch it again!"


@pytest.fixture(autouse=True)
def written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", [TEXT, "Terrible.", "\u200b \U0001f600", "The plot is thin. " * 200])
def test_the_parts_add_up(tiny_checkpoint: Path, text: str) -> None:
    checkpoint = load_production(tiny_checkpoint)
    model = checkpoint.model
    found = explain(checkpoint, text)
    assert found.logit == pytest.approx(found.evidence + found.streams + found.bias)
    for parts in (found.segments, found.tokens):
        assert sum(part.nats for part in parts) == pytest.approx(found.evidence - found.intercept, abs=1e-3)
    documents = encode(checkpoint.tokenizer, [text], model.config.max_tokens, model.config.head_tokens)
    parts = components_of(model, documents)
    posterior = model.posterior
    evidence, streams = posterior.log_evidence_scale.exp() * parts.evidence[0], posterior.log_trunk_scale.exp()
    columns = class_logits(evidence + streams * parts.trunk[0].mean(0) + posterior.bias).detach()
    predicted = checkpoint.label_names.index(found.label)
    assert float(columns[predicted] - columns[1 - predicted]) == pytest.approx(found.logit, abs=1e-4)
    assert len(found.segments) == math.ceil(len(documents[0]) / model.config.segment_length)
    named = [*found.spoke_for, *found.spoke_against]
    assert all(term.text in " ".join(text.split()) or " … " in term.text for term in named)


def test_the_command_prints_what_spoke_and_writes_a_page(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(tiny_checkpoint), TEXT, "bad \x1b[31mfilm"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"(positive|negative) 0\.\d{3}  A <b>wonderful</b> film", out)
    assert "\x1b" not in out
    assert out.splitlines()[-1] == "build/explain/report.html"
    page = Path("build/explain/report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    shown = re.sub(r"<[^>]*>", "", page[page.index('<p class="text">') : page.index("</p>")])
    assert shown == TEXT.replace("<", "&lt;").replace(">", "&gt;")


def test_a_file_is_read_by_lines_and_json_holds_everything(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXT}\nTerrible.\n", encoding="utf-8")
    assert main(["explain", str(tiny_checkpoint), "--file", str(file), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["texts"]
    assert (first["text"], second["text"]) == (TEXT, "Terrible.")
    assert first["spoke_for"][0]["nats"] >= first["spoke_for"][-1]["nats"] > 0
    assert 0 <= first["streams_share"] <= 1


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "there is no text"),
        (["a", "--file", "b.txt"], "give one of them"),
        (["--file", "missing.txt"], "missing.txt cannot be read"),
        (["a", " "], "text 2 is blank"),
    ],
)
def test_wrong_use_is_one_line_and_exit_status_two(
    tiny_checkpoint: Path, arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(tiny_checkpoint), *arguments]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert advice in printed.err
    assert not printed.out
