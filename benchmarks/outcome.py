"""What a load run hands to its judgement; apart from both, so that judging needs neither Locust nor gevent."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.samples import Measured
from benchmarks.triton_statistics import Snapshot


@dataclass(frozen=True)
class Outcome:
    """What a run saw.

    Attributes:
        measured: the requests due in the measured part.
        messages: per kind of failure the first message.
        generator_cpu: processor time of this process per second of the measured part (1 = one core).
        connections: the most connections seen at once in the measured part; None where the system does not tell.
        triton: Triton's counters over the measured part; None where the server had gone, or had been restarted.
        server_alive: whether the server answers after the run.
        tokens: least, mean and most tokens of the texts, where the server tells.
        locust_html: Locust's own report.
    """

    measured: Measured
    messages: dict[str, str]
    generator_cpu: float
    connections: int | None
    triton: Snapshot | None
    server_alive: bool
    tokens: dict[str, float]
    locust_html: str
