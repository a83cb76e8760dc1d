"""A caller who needs another error budget than the export's asks for the thresholds and decides by the answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bet_client import Budget, IncompatibleModelError, ModelNotFoundError, Prediction

import serve
from export.manifest import read_manifest
from tests.clients.conftest import Protocol, load_again, model_config, write_model
from tests.clients.test_served_classifier import REVIEWS

Ask = Callable[..., Any]

STRICT = Budget(0.01, 0.95, 0.1, 0.05, 900, 0.5, 0.004, 0.0099, "")


def answer(total: float | None = 0.05, epistemic: float | None = 0.01) -> Prediction:
    """A prediction of which only the uncertainties matter; the rest is as of a model that gives nothing else."""
    empty: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Prediction))
    return Prediction(**{**empty, "total": total, "epistemic": epistemic})


def test_the_budgets_of_the_served_version_are_those_of_its_manifest(
    connect: Ask, protocol: Protocol, server: serve.Server, repository: Path
) -> None:
    client = connect(server.http_url if protocol == "http" else server.grpc_url, timeout=30)
    manifest = read_manifest(repository / "bet_classifier" / "1")
    budgets = client.budgets()
    assert [dataclasses.asdict(budget) for budget in budgets] == manifest["budgets"]
    (chosen,) = (budget for budget in budgets if budget.max_error == manifest["calibration"]["max_error"])
    for given in client.predict_many(REVIEWS):
        assert chosen.accepts(given) is not given.review


def test_a_model_without_calibration_has_none_and_a_model_that_is_not_there_says_so(ask: Ask) -> None:
    assert ask(model="plain").budgets(timeout=10) == []
    with pytest.raises(ModelNotFoundError, match="nobody"):
        ask(model="nobody").budgets()


def test_budgets_are_those_of_the_version_that_answers_now(ask: Ask, triton: serve.Server, stand_ins: Path) -> None:
    client = ask(model="changing")
    assert client.budgets() == []
    # What a later export says beside is left aside, so that an old client still reads it.
    budgets = json.dumps([{**dataclasses.asdict(STRICT), "later": 1}])
    write_model(stand_ins, "changing", model_config("changing", budgets=budgets))
    load_again(triton, "changing")
    try:
        assert client.budgets() == [STRICT]
        write_model(stand_ins, "changing", model_config("changing", budgets='[{"max_error": 0.01}]'))
        load_again(triton, "changing")
        with pytest.raises(IncompatibleModelError, match="'budgets' of model 'changing' cannot be read"):
            client.budgets()
        assert client.predict("hello").label in client.labels
    finally:
        write_model(stand_ins, "changing", model_config("changing"))
        load_again(triton, "changing")


@pytest.mark.parametrize(
    ("total", "epistemic", "accepted"),
    [
        (0.05, 0.01, True),
        (0.11, 0.01, False),
        (0.05, 0.06, False),
        (float(np.float32(0.1)), float(np.float32(0.05)), True),  # a little above 0.1, and yet what the graph accepts
        (float("nan"), 0.01, False),
    ],
)
def test_an_answer_is_accepted_where_it_is_certain_and_familiar(total: float, epistemic: float, accepted: bool) -> None:
    assert STRICT.accepts(answer(total, epistemic)) is accepted


def test_nothing_is_accepted_under_a_budget_that_could_not_be_proven() -> None:
    nothing = dataclasses.replace(STRICT, risk_threshold=-1.0)
    assert not nothing.accepts(answer(0.0, 0.0))


def test_a_softmax_is_judged_by_its_total_alone_and_an_answer_without_what_is_bounded_is_an_error() -> None:
    assert dataclasses.replace(STRICT, novelty_threshold=None).accepts(answer(0.05, None))
    for missing, name in ((answer(None), "total"), (answer(0.05, None), "epistemic")):
        with pytest.raises(ValueError, match=f"no '{name}'"):
            STRICT.accepts(missing)
