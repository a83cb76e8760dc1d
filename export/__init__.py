"""From a checkpoint to a version in the model repository, behind a gate that compares every side with PyTorch."""

import os

from export.errors import ExportError, GateError, GraphError, RepositoryError

__all__ = ["ExportError", "GateError", "GraphError", "RepositoryError"]

# The official builds of ONNX Runtime send events about sessions to Microsoft unless this stands there before the
# library is loaded (its Privacy.md). What a user exports is nobody's business; who wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
