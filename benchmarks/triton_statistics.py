"""Triton's own counters of a model and of the steps of an ensemble: what the server says that it executed.

One request to an ensemble is counted again by each of its steps, so nothing here is a sum over models: requests and
inferences are those of the model that was asked, executions those of one step. Follows the statistics extension of the
KServe v2 protocol (triton-inference-server/server, docs/protocol/extension_statistics.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from benchmarks.errors import ServerError
from benchmarks.settings import Protocol

_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class ModelCounts:
    """Counters of one model since the server loaded it, or between two moments (`since`).

    Attributes:
        requests: requests answered (failed ones are in `failures`).
        inferences: rows in them: a request of batch 4 is 4 inferences.
        executions: runs of the model, each of one or several requests joined.
    """

    requests: int
    failures: int
    inferences: int
    executions: int

    def since(self, earlier: ModelCounts) -> ModelCounts:
        """What was counted after `earlier`."""
        return ModelCounts(
            self.requests - earlier.requests,
            self.failures - earlier.failures,
            self.inferences - earlier.inferences,
            self.executions - earlier.executions,
        )

    @property
    def mean_batch_size(self) -> float | None:
        """Rows per execution; None where nothing was executed."""
        return self.inferences / self.executions if self.executions else None


@dataclass(frozen=True)
class Snapshot:
    """The counters of an ensemble and of its steps, in their order, at one moment (or between two)."""

    asked: ModelCounts
    steps: Mapping[str, ModelCounts]

    @property
    def classifier(self) -> ModelCounts:
        """The last step, the classifier in every ensemble of the repository; the model itself where it has no steps."""
        return list(self.steps.values())[-1] if self.steps else self.asked

    def since(self, earlier: Snapshot) -> Snapshot:
        """What was counted after `earlier`."""
        return Snapshot(
            self.asked.since(earlier.asked),
            {name: counts.since(earlier.steps[name]) for name, counts in self.steps.items() if name in earlier.steps},
        )


class StatisticsReader:
    """Reads the counters of one model over either protocol.

    Raises:
        ServerError: from every method, where the server does not answer or does not know the model.
    """

    def __init__(self, url: str, protocol: Protocol, model: str) -> None:
        self._model = model
        self._http: Any = None
        self._grpc: Any = None
        if protocol == "http":
            self._http = tritonclient.http.InferenceServerClient(
                url, connection_timeout=_TIMEOUT, network_timeout=_TIMEOUT
            )
        else:
            # gRPC shares a connection between equal channels: without a pool of its own this one would be a user's.
            self._grpc = tritonclient.grpc.InferenceServerClient(
                url, channel_args=[("grpc.use_local_subchannel_pool", 1)]
            )

    def snapshot(self) -> Snapshot:
        """The counters as they are now."""
        steps = self._steps()
        return Snapshot(
            self._counts(self._model, None), {name: self._counts(name, version) for name, version in steps.items()}
        )

    def close(self) -> None:
        """Close the connection."""
        (self._http or self._grpc).close()

    def _steps(self) -> dict[str, str | None]:
        """The steps of the ensemble with the version that it pins, None for the newest."""
        config = self._ask("get_model_config", self._model)
        config = config.get("config", config)  # gRPC wraps it
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        return {
            step["model_name"]: None if int(step.get("model_version", -1)) < 0 else str(step["model_version"])
            for step in steps
        }

    def _counts(self, model: str, version: str | None) -> ModelCounts:
        """Counters of `version`, or of all loaded versions together."""
        rows = self._ask("get_inference_statistics", model, version or "")["model_stats"]
        # Over gRPC a 64-bit number is a string and a zero is left out.
        return ModelCounts(
            requests=sum(int(row.get("inference_stats", {}).get("success", {}).get("count", 0)) for row in rows),
            failures=sum(int(row.get("inference_stats", {}).get("fail", {}).get("count", 0)) for row in rows),
            inferences=sum(int(row.get("inference_count", 0)) for row in rows),
            executions=sum(int(row.get("execution_count", 0)) for row in rows),
        )

    def _ask(self, method: str, *arguments: str) -> Any:
        try:
            if self._http is not None:
                return getattr(self._http, method)(*arguments)
            return getattr(self._grpc, method)(*arguments, as_json=True, client_timeout=_TIMEOUT)
        except (InferenceServerException, OSError) as error:
            raise ServerError(f"cannot read the statistics of {self._model!r}: {error}") from error
