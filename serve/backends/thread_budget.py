"""How many threads a model may use: the processors that this process may really run on.

`os.cpu_count()` and ONNX Runtime's own default see the host. In a container with `--cpus=2`, or a cpuset on a large
host, that gives a pool of threads that throttle each other, and affinity errors where ONNX Runtime pins them to
processors that are not ours; it pins none when the number is given.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def thread_budget(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors in the affinity mask, bounded by the cgroup's CPU quota (rounded up), at least 1."""
    processors = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, processors if quota is None else min(processors, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the cgroup grants (versions 2 and 1); None where it sets no limit."""
    try:
        limit, _, period = (cgroup / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
    except OSError:
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return None if limit in ("max", "-1") else int(limit) / int(period)
