"""Clients for a text classifier that knows when it does not know: the public names of the package.

`Client` and `AsyncClient` ask the ensemble that Triton serves and give a `Prediction` per text; `errors` draws the
tree of what can go wrong.
"""

from bet_client.aio import AsyncClient
from bet_client.contract import MAX_REQUEST_BYTES
from bet_client.errors import (
    BetClientError,
    ClientStateError,
    ConnectionFailedError,
    DeadlineExceededError,
    IncompatibleModelError,
    InvalidInputError,
    ModelNotFoundError,
    ServerError,
    TransportError,
    UnavailableError,
)
from bet_client.sync import Client
from bet_client.types import Budget, Diagnostics, NgramEvidence, Prediction

__all__ = [
    "MAX_REQUEST_BYTES",
    "AsyncClient",
    "BetClientError",
    "Budget",
    "Client",
    "ClientStateError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "Diagnostics",
    "IncompatibleModelError",
    "InvalidInputError",
    "ModelNotFoundError",
    "NgramEvidence",
    "Prediction",
    "ServerError",
    "TransportError",
    "UnavailableError",
]
