"""One copy of a graph's weights for all instances: each is a process here, so the copy is a file that they map.

ONNX Runtime lays matrices out for the processor when it loads a graph, and every session of every process keeps a
copy of its own. It can also write the optimised graph with the matrices as they were laid out
(`session.save_external_prepacked_constant_initializers`) and map them from that file, so that instances read the same
memory, as those of the compiled backend do that share a session. The file fits this processor and this version of
ONNX Runtime alone: it lies in the folder of the running server, and goes when the model is unloaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort

FOLDER = "BET_SHARED_WEIGHTS"  # environment variable: where this server's files lie
_GRAPH, _WEIGHTS = "model.onnx", "weights"
_LEAST_BYTES = "1024"  # smaller tensors stay in the graph


class SharedWeights:
    """The weights of one graph under one set of options, on disk from the first session to the first `drop`."""

    def __init__(self, graph: Path, options: Callable[[], ort.SessionOptions], described: str) -> None:
        """Options are made anew for each session; `described` is what they depend on."""
        state = graph.stat()
        key = f"{graph} {state.st_ino} {state.st_size} {state.st_mtime_ns} {described} {ort.__version__}"
        self._folder = Path(os.environ[FOLDER]) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._graph = graph
        self._options = options

    def session(self, providers: list[str]) -> ort.InferenceSession:
        """A session over the shared weights; the first one writes them.

        Raises:
            OSError: if they cannot be written.
            Exception: of ONNX Runtime, if the graph cannot be loaded.
        """
        with self._locked():
            laid_out = self._folder / _GRAPH
            if not laid_out.exists():
                unfinished = self._folder / f"unfinished-{_GRAPH}"
                options = self._options()
                options.optimized_model_filepath = str(unfinished)
                for name, value in (
                    ("optimized_model_external_initializers_file_name", _WEIGHTS),
                    ("optimized_model_external_initializers_min_size_in_bytes", _LEAST_BYTES),
                    ("save_external_prepacked_constant_initializers", "1"),
                ):
                    options.add_session_config_entry(f"session.{name}", value)
                ort.InferenceSession(str(self._graph), options, providers=providers)
                unfinished.rename(laid_out)
            options = self._options()
            # It was optimised when it was written.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return ort.InferenceSession(str(laid_out), options, providers=providers)

    def drop(self) -> None:
        """Remove the files; sessions that are open keep what they have mapped, and a new one writes them again."""
        with contextlib.suppress(OSError), self._locked():
            for name in (_GRAPH, _WEIGHTS):
                (self._folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
