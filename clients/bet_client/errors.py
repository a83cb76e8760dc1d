"""What can go wrong, as one small tree; the same fault is the same class over gRPC and HTTP.

    BetClientError
    ├── InvalidInputError           this text (or request) is refused; sent again, it will be refused again
    ├── TransportError              no answer came
    │   ├── ConnectionFailedError   nobody listens there, the name is unknown, or the connection broke
    │   └── DeadlineExceededError   the call's time ran out
    ├── ServerError                 the server answered with a failure of its own
    │   ├── UnavailableError        its queue is full or the model is not loaded now; it may be later
    │   ├── ModelNotFoundError      it serves no model of this name
    │   └── IncompatibleModelError  the model's inputs, outputs or answers are not those of this service
    └── ClientStateError            the client is closed, or used in another process or event loop than its own

Wrong arguments of a constructor or method (a negative timeout, a string where a list belongs) are Python's own
`ValueError` and `TypeError`: they are mistakes in the calling program, not faults of a call.
"""

from __future__ import annotations


class BetClientError(Exception):
    """Base of all errors of this package."""


class InvalidInputError(BetClientError):
    """The text or the request is refused: empty, blank, not a string, not encodable, too long."""


class TransportError(BetClientError):
    """No answer came from the server."""


class ConnectionFailedError(TransportError):
    """The server could not be reached, or the connection broke before the answer was complete."""


class DeadlineExceededError(TransportError):
    """The time given to the whole call ran out."""


class ServerError(BetClientError):
    """The server answered with a failure; the message holds its own words."""


class UnavailableError(ServerError):
    """The server is too busy, or the model is not loaded now; the same call may succeed later.

    `retry_after` is when, in seconds, where the server said so: infinite where it wants not to be asked again.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotFoundError(ServerError):
    """The server serves no model of this name."""


class IncompatibleModelError(ServerError):
    """The model does not have the inputs, outputs, parameters or answers that this client understands."""


class ClientStateError(BetClientError):
    """The client cannot be used here: it is closed, or belongs to another process or event loop."""
