"""Every way to a spread answers like the model does, keeps what it promises, and stands in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from train.__main__ import main
from train.checkpoint import Checkpoint, load_production
from train.data import reload_corpus
from train.model.bet import BetForSequenceClassification
from train.model.posterior import Posterior
from train.prediction import Ids, components_of
from train.spread import study
from train.spread.cost import Answering, feed_of, milliseconds, open_session
from train.spread.members import BatchEnsemble, Distilled, MemberLinear
from train.spread.methods import Constant, DeepEnsemble, GaussianProcess, Laplace, Mahalanobis, MonteCarloDropout
from train.spread.plain import PlainTransformer
from train.spread.study import _training_texts, compare_spreads
from train.tokenizer import encode
from train.training import TrainingTexts

LastLayerWay = Callable[[BetForSequenceClassification, TrainingTexts], nn.Module]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Checkpoint:
    return load_production(tiny_checkpoint)


@pytest.fixture(scope="module")
def training(tiny_checkpoint: Path, loaded: Checkpoint) -> TrainingTexts:
    return _training_texts(tiny_checkpoint, loaded, reload_corpus(loaded.provenance["data"]))


@pytest.fixture(scope="module")
def documents(loaded: Checkpoint) -> list[Ids]:
    corpus = reload_corpus(loaded.provenance["data"])
    config = loaded.model.config
    return encode(loaded.tokenizer, corpus.validation.texts, config.max_tokens, config.head_tokens)


def test_members_are_orders_to_the_posterior(loaded: Checkpoint, documents: list[Ids]) -> None:
    model = loaded.model
    alone, together = components_of(model, documents), components_of(DeepEnsemble([model, model]), documents)  # type: ignore[arg-type]
    assert torch.equal(together.trunk, torch.cat([alone.trunk, alone.trunk], 1))
    assert torch.equal(together.evidence, alone.evidence)
    constant = components_of(Constant(model), documents)  # type: ignore[arg-type]
    assert not constant.novelty.any()
    posterior = Posterior(1, 9)
    assert torch.allclose(
        posterior(*together).probabilities,
        posterior(*alone._replace(novelty=constant.novelty)).probabilities,
        atol=1e-6,
    )


def test_dropout_is_on_for_the_samples_and_off_afterwards(loaded: Checkpoint, documents: list[Ids]) -> None:
    model = loaded.model
    before = components_of(model, documents[:4])
    sampled = components_of(MonteCarloDropout(model, 3), documents[:4])  # type: ignore[arg-type]
    assert sampled.trunk.shape[1] == 3
    assert (sampled.trunk.std(1) > 0).all()
    assert torch.equal(components_of(model, documents[:4]).trunk, before.trunk)


@pytest.mark.parametrize("way", [Laplace, Mahalanobis, GaussianProcess])
def test_distances_are_one_in_training_and_grow_with_strangeness(
    way: LastLayerWay, loaded: Checkpoint, training: TrainingTexts, documents: list[Ids]
) -> None:
    measured = way(loaded.model, training)
    familiar = measured.training_features  # type: ignore[union-attr]
    assert measured.distance(familiar).mean().item() == pytest.approx(1, abs=1e-4)  # type: ignore[operator]
    assert (measured.distance(familiar) >= 0).all()  # type: ignore[operator]
    far = measured.distance(10 * familiar).mean()  # type: ignore[operator]
    assert far > measured.distance(familiar).mean()  # type: ignore[operator]
    found = components_of(measured, documents)  # type: ignore[arg-type]
    assert torch.equal(found.trunk, components_of(loaded.model, documents).trunk)
    assert (found.novelty[:, 0] > 0).all()
    assert not found.novelty[:, 1].any()


def test_a_member_is_its_rank_one_matrix() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(5, 3)
    layer = MemberLinear(shared, 4)
    x = torch.randn(2, 5)
    for member in range(4):
        layer.member = member
        own = shared.weight * layer.factors_out[member][:, None] * layer.factors_in[member]
        assert torch.allclose(layer(x), x @ own.T + layer.biases[member], atol=1e-6)


@pytest.mark.heavy
def test_what_is_trained_to_compare_learns(
    loaded: Checkpoint, training: TrainingTexts, documents: list[Ids], tiny_checkpoint: Path
) -> None:
    options = study._options(loaded.provenance)
    labels = torch.from_numpy(reload_corpus(loaded.provenance["data"]).validation.labels)
    plain = PlainTransformer.of_the_size_of(loaded.model)
    plain.fit(training, options, seed=0)
    logits = components_of(plain, documents).trunk[:, 0]  # type: ignore[arg-type]
    alone = torch.cat([plain(*study_padded(document)) for document in documents])
    assert torch.allclose(logits, alone, atol=1e-4)  # padding is nothing
    ensemble = BatchEnsemble(study._untrained_streams(loaded.model, tiny_checkpoint.parent), 2)
    ensemble.fit(training, options, seed=0)
    found = components_of(ensemble, documents)  # type: ignore[arg-type]
    assert found.trunk.shape[1] == 2 * loaded.model.config.orders
    right = ((found.evidence[:, 0] + found.trunk.mean((1, 2)) > 0).long() == labels).float().mean()
    assert right > 0.6
    distilled = Distilled(loaded.model, training)
    before = components_of(loaded.model, documents)
    distilled.fit([loaded.model], training, options, seed=0)
    after = components_of(distilled, documents)  # type: ignore[arg-type]
    assert (after.novelty[:, 0] > 0).all()
    assert (after.trunk.mean(1) - before.trunk.mean(1)).abs().mean() < 1


def study_padded(document: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(document)[None]
    return ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.heavy
def test_the_graphs_answer_as_the_ways_do_and_cost_time(
    loaded: Checkpoint, training: TrainingTexts, documents: list[Ids], tmp_path: Path
) -> None:
    text = documents[0][:20]
    for index, spread in enumerate(
        (Mahalanobis(loaded.model, training), PlainTransformer.of_the_size_of(loaded.model))
    ):
        way = Answering(spread, loaded.model.posterior).eval()
        session = open_session(way, tmp_path / f"{index}.onnx")
        feed = feed_of(way, text)
        with torch.no_grad():
            for served, right in zip(session.run(None, feed), way(*map(torch.from_numpy, feed.values())), strict=True):
                np.testing.assert_allclose(served, right.numpy(), atol=1e-5)
    costs = milliseconds({"Mahalanobis": way}, {"20": text})
    assert 0 < costs["Mahalanobis"]["20"] < 1000


def test_an_ensemble_of_other_runs_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = load_production(tiny_checkpoint)
    other = load_production(tiny_checkpoint)
    other.provenance["preset"] = {**other.provenance["preset"], "name": "other"}
    found = iter([real, other])
    monkeypatch.setattr(study, "load_production", lambda path: next(found))
    assert main(["spread", str(tiny_checkpoint), str(tiny_checkpoint)]) == 2
    assert "another preset" in capsys.readouterr().err


@pytest.mark.heavy
def test_every_way_stands_in_the_table(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "milliseconds", lambda ways, texts: {name: dict.fromkeys(texts, 1.0) for name in ways})
    random = Random(0)
    words = ["".join(random.choices("aeioklmnrstvz", k=6)) for _ in range(2000)]
    salad = {"salad": [" ".join(random.choices(words, k=150)) for _ in range(12)]}
    monkeypatch.setattr(study, "unfamiliar_texts", lambda training, lengths: salad)
    monkeypatch.setattr(study, "further_texts", lambda training, lengths: salad)
    report = compare_spreads([tiny_checkpoint, tiny_checkpoint])
    ways = report.details["ways"]
    assert next(iter(ways)) == "novelty"
    assert {"constant", "deep ensemble", "distilled ensemble", "BatchEnsemble", "plain transformer"} <= set(ways)
    assert ways["novelty"]["figures"]["unfamiliar_auroc_fresh"] > ways["constant"]["figures"]["unfamiliar_auroc_fresh"]
    for name, way in ways.items():
        assert 0 < way["figures"]["nll"] < 1.5, name
        assert set(way["default_minus_way"]) == (
            set() if name == "novelty" else {"nll", "acceptable_at_5pct", "acceptable_at_1pct"}
        )
    checks = {check.name: check for check in report.checks}
    assert checks["cost_against_plain_300_tokens"].value == 1
    assert np.isfinite(checks["nll_novelty"].value or np.nan)
