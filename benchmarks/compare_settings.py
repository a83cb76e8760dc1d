"""What one comparison is asked to do: validated once, where it enters, with every fault in one message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import UsageError


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
        for name in ("callers", "rounds"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}, at least 1 is needed")
        if not 0 < self.seconds < float("inf"):
            faults.append(f"seconds is {self.seconds}, write seconds above 0")
        if faults:
            raise UsageError("; ".join(faults))
