"""The application around a peer's pipeline: FastAPI, one text a request, as the documentation of `transformers` shows.

Runs in the peers' environment; nothing of this project is imported. One request is executed at a time in each process:
more at once slow each other down on the interpreter's lock (`--workers`, or processes behind a load balancer, are how
such an application scales).
"""

import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class Text(BaseModel):
    """The body of a request."""

    text: str


def application_of(classifier: Callable[..., list[Any]]) -> FastAPI:
    """An application whose `/predict` answers with the most probable label and its probability."""
    one_at_a_time = threading.Lock()
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Text) -> dict[str, str | float]:
        with one_at_a_time:
            answer: dict[str, str | float] = classifier(body.text, truncation=True)[0]
        return answer

    return app
