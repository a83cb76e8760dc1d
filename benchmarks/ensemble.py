"""An ensemble of the repository over HTTP, as bytes: what to send for a text, and what an answer says.

The bytes are those that `bet_client` sends, for all that a `Prediction` holds; generators that must cost little send
them without the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bet_client import BetClientError, Client, Prediction
from bet_client.contract import ModelContract, read_contract
from bet_client.deadline import Deadline
from bet_client.settings import DEFAULT_MAX_ROWS, check_settings
from bet_client.transport import open_transport
from bet_client.wire import HEADER_LENGTH, Infer, ReadConfig, encode_text, http_reply, http_request, read_predictions

from benchmarks.answers import ask_each, difference
from benchmarks.errors import ServerError
from benchmarks.http_connection import body_of, header_of, http_post, status_of
from benchmarks.samples import WRONG_ANSWER
from benchmarks.texts import Texts

_TIMEOUT = 60.0  # seconds, for what is asked before a load
REFUSED = "Refused"
"""The fault of a request that the server turned away at once because it has too many (503)."""


@dataclass(frozen=True)
class Ensemble:
    """One ensemble at an address."""

    address: str
    contract: ModelContract

    @classmethod
    def read(cls, address: str, model: str) -> Ensemble:
        """Ask the server at `host:port` what the model offers.

        Raises:
            ServerError: if it does not say.
        """
        [server] = check_settings(address, "http", model, _TIMEOUT, DEFAULT_MAX_ROWS).addresses
        transport = open_transport("http", server)
        try:
            config = transport.send(ReadConfig(model), Deadline(_TIMEOUT, str(server)))
            return cls(str(server), read_contract(model, config))
        except BetClientError as error:
            raise ServerError(str(error)) from error
        finally:
            transport.close()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is asked for: all that a `Prediction` holds."""
        return self.contract.wanted(diagnostics=False)

    def request(self, text: str) -> bytes:
        """The bytes that ask for one text."""
        made = http_request(Infer(self.contract.model, (encode_text(text),), self.outputs))
        assert made.body is not None
        return http_post(made.path, made.body, made.headers)

    def read_answer(self, reply: bytes) -> Prediction:
        """The answer in the bytes of a reply.

        Raises:
            ValueError: if it holds none, with what the server says instead.
        """
        call = Infer(self.contract.model, (b"",), self.outputs)
        deadline = Deadline(_TIMEOUT, self.address)
        try:
            tensors = http_reply(call, status_of(reply), header_of(reply, HEADER_LENGTH), body_of(reply), deadline)
            return read_predictions(tensors, self.contract, rows=1, outputs=self.outputs, diagnostics=False)[0]
        except BetClientError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Questions:
    """Texts as requests, with the answer to each that was given alone."""

    ensemble: Ensemble
    requests: tuple[bytes, ...]
    expected: tuple[Prediction, ...]

    @classmethod
    def ask(cls, address: str, model: str, texts: Sequence[str]) -> Questions:
        """Ask for each text alone.

        Raises:
            ServerError: if there is no answer.
            TextsError: if the server refuses a text.
        """
        ensemble = Ensemble.read(address, model)
        with Client(address, protocol="http", model=model, timeout=_TIMEOUT) as client:
            expected = ask_each(client, Texts("the texts", tuple(texts)), lambda done: None)
        return cls(ensemble, tuple(ensemble.request(text) for text in texts), expected)

    def fault(self, request: int, reply: bytes) -> str | None:
        """What is wrong with a reply, as `Kind: message`; None where it is the answer that was given alone."""
        status = status_of(reply)
        if status == 503:
            return f"{REFUSED}: {body_of(reply)[:120]!r}"
        if status != 200:
            return f"Status{status}: {body_of(reply)[:120]!r}"
        try:
            answer = self.ensemble.read_answer(reply)
        except ValueError as error:
            return f"UnreadableAnswer: {error}"
        wrong = difference(self.expected[request], answer)
        return None if wrong is None else f"{WRONG_ANSWER}: text {request + 1}: {wrong}"
