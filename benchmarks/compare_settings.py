"""What a comparison is asked to do: validated once, where it enters, with every fault in one message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_of_settings import below_one, not_above_zero, refuse


@dataclass(frozen=True)
class CompareSettings:
    """One comparison of our server with its peers, on this machine.

    Attributes:
        model: the ensemble in `repository` that was exported from `checkpoint`.
        checkpoint: the Hugging Face folder that the peers load.
        lengths: tokens of the texts, special ones included; each length is measured by itself.
        callers: connections, each asking again once it was answered.
        seconds, warm_up: measured and left out, for each system, length and round.
        rounds: in each, every system is asked once at each length, in an order that turns by one from round to round.
        tolerance: largest difference of a probability to PyTorch's.
        texts: distinct ones of each length.

    Raises:
        UsageError: with every value that cannot be right.
    """

    model: str
    checkpoint: Path
    repository: Path = Path("model_repository")
    lengths: tuple[int, ...] = (16, 64, 128, 256)
    # Two wait for every one that is executed on two cores: no system is ever idle, and none queues for seconds.
    callers: int = 8
    # Many short turns: a shared machine changes its speed by a fifth within minutes, and little within seconds.
    seconds: float = 2.0
    warm_up: float = 0.5
    rounds: int = 20
    tolerance: float = 1e-3
    texts: int = 48

    def __post_init__(self) -> None:
        faults = []
        if not self.lengths or min(self.lengths) < 3 or len(set(self.lengths)) < len(self.lengths):
            faults.append(f"lengths are {', '.join(map(str, self.lengths))}, write different ones of 3 tokens or more")
        faults += below_one(self, "callers", "rounds")
        faults += not_above_zero(self, "seconds")
        refuse(faults)


@dataclass(frozen=True)
class GraphSettings:
    """One comparison of our server with other ways to run the very graph that it serves, on this machine.

    Attributes:
        model: the ensemble in `repository`.
        short_tokens, long_tokens: exact lengths of two groups of texts; `mixed` are whole texts, cut as the model cuts.
        callers: connections, each asking again once it was answered; a single one is measured beside.
        joined: how many texts the in-process ceiling may execute at once, to choose the best from; 1 among them.
        seconds, warm_up: measured and left out, for each system, group and round.
        choosing: seconds for each setting of a peer, before the rounds.
        rounds: in each, every system is asked once in each group, in an order that turns by one from round to round.
        tolerance: largest difference of a probability to the graph's when it is asked alone.
        texts: distinct ones of each exact length; of `mixed`, which vary, as many as the sample has.

    Raises:
        UsageError: with every value that cannot be right.
    """

    model: str = "bet"
    repository: Path = Path("model_repository")
    short_tokens: int = 20
    long_tokens: int = 230
    callers: int = 32
    joined: tuple[int, ...] = (1, 8, 32)
    seconds: float = 2.0
    warm_up: float = 0.5
    choosing: float = 2.0
    rounds: int = 20
    # Joined rows move a probability by 2e-7 (measured), another text's answer by far more.
    tolerance: float = 1e-5
    texts: int = 48

    def __post_init__(self) -> None:
        faults = below_one(self, "short_tokens", "long_tokens", "callers", "rounds", "texts")
        if 1 not in self.joined or min(self.joined) < 1:
            faults.append(f"joined is {self.joined}, write 1 and larger numbers of texts")
        faults += not_above_zero(self, "seconds", "choosing")
        refuse(faults)


@dataclass(frozen=True)
class PackedSettings:
    """One measurement of the graph of `model` on packed and on padded batches.

    Attributes:
        rows: texts in a batch; the server joins at most 64.
        batches: different ones, drawn from the texts with `seed`.
        rounds: in each, every form executes every batch once.
        threads: of ONNX Runtime, as the server's instances have.
        short_tokens, short_batches, short_repeats: batches of short texts, timed beside: the length of each text, how
            many there are, and executions in a round, of which the median counts.

    Raises:
        UsageError: with every value that cannot be right.
    """

    model: str = "bet"
    repository: Path = Path("model_repository")
    rows: int = 32
    batches: int = 8
    rounds: int = 15
    threads: int = 1
    short_tokens: int = 20
    short_batches: tuple[int, ...] = (8, 64)
    short_repeats: int = 11
    seed: int = 0

    def __post_init__(self) -> None:
        faults = below_one(self, "rows", "batches", "rounds", "threads", "short_tokens", "short_repeats")
        if not self.short_batches or min(self.short_batches) < 1:
            faults.append(f"short-batches are {self.short_batches}, write numbers of texts from 1 on")
        refuse(faults)
