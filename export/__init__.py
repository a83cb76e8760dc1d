"""From a checkpoint to a version in the model repository, behind a gate that compares every side with PyTorch."""

from export.errors import ExportError, GateError, GraphError, RepositoryError

__all__ = ["ExportError", "GateError", "GraphError", "RepositoryError"]
