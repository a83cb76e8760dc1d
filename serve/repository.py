"""What lies in a model repository, as far as a launcher must know: which ensembles can be served, and what they need.

The configurations are read as Triton reads them, as the protobuf message `ModelConfig` in text form
(github.com/triton-inference-server/common, protobuf/model_config.proto); nothing is written. An ensemble pins the
version of its steps, and the manifest of a pinned version may carry a probe: a text and the answer that was right when
the version was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serve.cpu import other_processor
from serve.errors import RepositoryError

CONFIG = "config.pbtxt"
CHALLENGER_OF = "challenger_of"  # parameter of an ensemble that `export promote` compares with and then removes
EXPORT_HINT = "export one with `python -m export add CHECKPOINT`"


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: a model, and the version that the ensemble pins (-1: the newest)."""

    model: str
    version: int


@dataclass(frozen=True)
class Model:
    """One model of the repository."""

    name: str
    folder: Path
    backend: str  # "ensemble" for an ensemble
    instances: int  # stub processes that the Python backend starts for it on one device
    steps: tuple[Step, ...]

    @property
    def versions(self) -> tuple[int, ...]:
        """The version folders that exist, ascending."""
        return tuple(sorted(int(f.name) for f in self.folder.iterdir() if f.is_dir() and f.name.isdecimal()))


@dataclass(frozen=True)
class Probe:
    """A text and its right answer, from the manifest of the version that is served."""

    model: str
    text: str
    answer: Mapping[str, tuple[str | float, ...]]  # by output, what one row holds
    tolerance: float = 1e-4  # of a number: between one machine's float32 and another's; a value's depends on its unit


@dataclass(frozen=True)
class Repository:
    """A folder of models."""

    path: Path
    models: dict[str, Model]

    def servable(self, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """The models to load: `names`, or each ensemble of which any step has been exported.

        Raises:
            RepositoryError: if a name is unknown, a pinned version is missing, or nothing can be served.
        """
        if names is not None:
            unknown = [name for name in names if name not in self.models]
            if unknown or not names:
                raise RepositoryError(
                    f"model {', '.join(unknown) or '(none given)'} is not in {self.path}; "
                    f"it holds {', '.join(sorted(self.models)) or 'no model'}"
                )
            chosen = tuple(names)
        else:
            # The configuration of an ensemble is in git before any version of its steps is exported.
            chosen = tuple(
                name
                for name, model in sorted(self.models.items())
                if model.steps and any(s.model in self.models and self.models[s.model].versions for s in model.steps)
            )
            if not chosen:
                raise RepositoryError(f"{self.path} holds no ensemble with an exported version; {EXPORT_HINT}")
        for name in chosen:
            self._require_versions(self.models[name])
        return chosen

    def loaded_with(self, names: Iterable[str]) -> tuple[Model, ...]:
        """The models that Triton loads for `names`: they and, of ensembles, their steps."""
        found: dict[str, Model] = {}
        for name in names:
            for member in (name, *(step.model for step in self.models[name].steps)):
                found[member] = self.models[member]
        return tuple(found.values())

    def probe(self, name: str, pinned: int | None = None) -> Probe | None:
        """The probe of an ensemble, from the manifest beside the pinned version of a step; None where none has one.

        Args:
            pinned: the version that a running server answers with, where that is known: `export promote` switches it.

        Raises:
            RepositoryError: if a manifest cannot be read, or its probe lacks a field.
        """
        for step in self.models[name].steps:
            model = self.models[step.model]
            version = pinned or (model.versions[-1] if step.version < 0 else step.version)
            manifest = model.folder / str(version) / "manifest.json"
            if not manifest.exists():
                continue
            try:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                # TorchScript stays in fp32 where the ONNX graph does not, and has a probe of its own there.
                script = any(self.models[s.model].backend == "pytorch" for s in self.models[name].steps)
                probe = (script and content.get("probe_torchscript")) or content.get("probe")
                if probe is not None:
                    return _probe(name, probe)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RepositoryError(
                    f"{manifest} has no readable probe ({error!r}); export the version again"
                ) from error
        return None

    def processor_warning(self, name: str) -> str:
        """What to say where an ensemble's version was compared on another kind of processor; else empty.

        Raises:
            RepositoryError: if its manifest cannot be read.
        """
        steps = self.models[name].steps
        if any(self.models[step.model].backend == "pytorch" for step in steps):
            return ""  # in fp32, whatever the ONNX graph is in
        for step in steps:
            model = self.models[step.model]
            version = model.versions[-1] if step.version < 0 else step.version
            manifest = model.folder / str(version) / "manifest.json"
            if manifest.exists():
                try:
                    return other_processor(json.loads(manifest.read_text(encoding="utf-8")))
                except ValueError as error:
                    raise RepositoryError(f"{manifest} cannot be read ({error}); export the version again") from error
        return ""

    def _require_versions(self, model: Model) -> None:
        for step in model.steps or (Step(model.name, -1),):
            if step.model not in self.models:
                raise RepositoryError(f"ensemble {model.name!r} needs the model {step.model!r}, missing in {self.path}")
            versions = self.models[step.model].versions
            if not versions or (step.version >= 0 and step.version not in versions):
                wanted = "a version" if step.version < 0 else f"version {step.version}"
                raise RepositoryError(
                    f"{model.name!r} needs {wanted} of {step.model!r}; {self.path / step.model} has "
                    f"{', '.join(map(str, versions)) or 'none'}; {EXPORT_HINT}"
                )


def read_repository(path: Path, device: str = "cpu") -> Repository:
    """Read the configurations of all models under `path`.

    With `device="gpu"` a model's `configs/gpu.pbtxt` stands before its `config.pbtxt`, as Triton's
    `--model-config-name=gpu` has it.

    Raises:
        RepositoryError: if the folder is missing, holds no model, or a configuration cannot be parsed.
    """
    path = path.resolve()
    if not path.is_dir():
        raise RepositoryError(f"{path} is not a folder; give --repository a model repository")
    models = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        alternative = folder / "configs" / f"{device}.pbtxt"
        config = alternative if alternative.exists() else folder / CONFIG
        if config.exists() and (model := _read_model(folder, config)) is not None:
            models[folder.name] = model
    if not models:
        raise RepositoryError(f"{path} holds no model (no folder with a {CONFIG}); {EXPORT_HINT}")
    return Repository(path, models)


def _probe(model: str, record: Mapping[str, Any]) -> Probe:
    """A probe as manifests hold it: a text, and an entry for each output of its answer.

    Raises:
        ValueError, KeyError, TypeError: if it is none.
    """
    several = "probabilities" in record and "label" not in record  # any number of labels, and no one of them
    names = ("value",) if "value" in record else ("probabilities",) if several else ("label", "probabilities")
    answer: dict[str, tuple[str | float, ...]] = {}
    for name in (*names, *(("total",) if record.get("total") is not None else ())):
        given = record[name] if isinstance(record[name], list) else [record[name]]
        answer[name] = tuple(str(entry) if name == "label" else float(entry) for entry in given)
    return Probe(model, str(record["text"]), answer, float(record.get("tolerance", Probe.tolerance)))


def _read_model(folder: Path, config: Path) -> Model | None:
    """The model, or None for a challenger: where one lies at start, its promotion was killed."""
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(config.read_text(encoding="utf-8"), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{config} is not a model configuration: {error}") from error
    if CHALLENGER_OF in message.parameters:
        return None
    steps = tuple(Step(s.model_name, int(s.model_version)) for s in message.ensemble_scheduling.step)
    backend = "ensemble" if steps or message.platform == "ensemble" else message.backend
    groups = [max(1, group.count) * max(1, len(group.gpus)) for group in message.instance_group]
    return Model(folder.name, folder, backend, sum(groups) or 1, steps)
