"""The tokenizer step: texts -> token ids, with the `tokenizers` library alone.

First step of the ensemble, executed by Triton's Python backend. It reads the `tokenizer.json` that the model was
trained with, out of its own version folder, and refuses to start where that file is not the one of the manifest or does
not give the manifest's golden ids, or where the classifiers' files of its version are not those of the manifest: the
classifiers run in compiled backends, which check nothing, and no answer goes past this step. All texts of all joined
requests are encoded in one call. A text that cannot be read is answered with INVALID_ARG, naming its row (from 0) where
the request has several; other requests are not affected.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# The processors belong to the classifier: threads of several instances would only take them from each other.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tokenizers import Tokenizer

try:  # the embedded engine lays it beside Triton's own module: a stub that was stopped ends instead of answering late
    from stops import in_time
except ImportError:  # elsewhere a late answer is Triton's business

    def in_time(execute: Any) -> Any:
        return execute


FILL = -1  # fills the shorter rows of a request up; no text can produce it, and the graph ignores it
MANIFEST = "manifest.json"
CLASSIFIERS = ("classifier", "classifier_torchscript")  # how the other models of a version are called: name_classifier


class TextError(Exception):
    """A text that cannot be answered; the message is for who sent it."""


def require_exported(folder: Path, model: str) -> None:
    """Raise where a file of this version, in any of its models' folders, is not the one that was exported.

    A folder that is not there is none of this step's business: its model is not served, or not from the same disk. Each
    instance reads all files, which costs 0.07 s for 100 MB in the page cache.

    Args:
        folder: the version's folder of this step.
        model: this step's name, `bet_tokenizer`.

    Raises:
        ValueError: naming the first such file.
    """
    manifest = (folder / MANIFEST).read_bytes()
    recorded: dict[str, str] = json.loads(manifest)["files"]
    name = model.removesuffix("tokenizer")
    siblings = [folder.parent.parent / f"{name}{other}" / folder.name for other in CLASSIFIERS]
    for place in (folder, *(sibling for sibling in siblings if sibling.is_dir())):
        if (place / MANIFEST).read_bytes() != manifest:
            raise ValueError(f"{place / MANIFEST} is not that of {folder}; export this version again")
        for file, digest in recorded.items():
            path = place / file
            if path.exists() and _sha256(path) != digest:
                raise ValueError(
                    f"{path} is not the file that was exported (the manifest says sha256 {digest[:12]}…); return to "
                    "another version, or export this one again"
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class TextTokenizer:
    """A version folder's tokenizer, cutting long texts as in training."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["tokenizer"]
        content = (folder / "tokenizer.json").read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != manifest["sha256"]:
            raise ValueError(
                f"{folder / 'tokenizer.json'} is not the file that the model was exported with (sha256 {found[:12]}…, "
                f"the manifest says {manifest['sha256'][:12]}…); export this version again"
            )
        self._tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # a special token in a user's text is plain text
        self._max_length: int = manifest["max_length"]
        self._head_length: int = manifest["head_length"]
        self._no_token: int = manifest["no_token_id"]
        self._special_tokens: bool = manifest.get("special_tokens", False)  # [CLS] … [SEP] around each text
        golden = [case["text"] for case in manifest["golden"]]
        for case, (ids, _) in zip(manifest["golden"], self.encode(golden), strict=True):
            if ids.tolist() != case["ids"]:
                raise ValueError(
                    f"the tokenizer in {folder} gives other ids than at export for {case['text'][:40]!r}; the "
                    "installed `tokenizers` reads the file differently: install the version named in manifest.json"
                )

    def encode(self, texts: list[str]) -> list[tuple[NDArray[np.int64], int]]:
        """Ids of each text, int64 [1 … max_length], and how many tokens it has before the cut.

        A longer text keeps its first `head_length` ids and its last ones (of a Hugging Face model these are the closing
        special tokens alone); a text without any token becomes the one that the manifest names.
        """
        tail = self._max_length - self._head_length
        rows = []
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special_tokens):
            ids = encoding.ids or [self._no_token]
            cut = ids if len(ids) <= self._max_length else ids[: self._head_length] + ids[len(ids) - tail :]
            rows.append((np.array(cut, dtype=np.int64), len(ids)))
        return rows

    @property
    def max_length(self) -> int:
        """Most ids of a row."""
        return self._max_length


def read_texts(values: NDArray[np.object_], max_bytes: int) -> list[str]:
    """The texts of one request, [rows, 1] of bytes.

    Raises:
        TextError: for the first text that is empty, blank, too long or not UTF-8.
    """
    rows = values.reshape(-1).tolist()
    if not rows:
        raise TextError("the request holds no text; send at least one, shape [rows, 1]")
    texts = []
    for row, value in enumerate(rows):
        where = f"row {row}: " if len(rows) > 1 else ""
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        if len(content) > max_bytes:
            raise TextError(f"{where}the text has {len(content)} bytes and at most {max_bytes} are read; send less")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(
                f"{where}the text is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); encode it as UTF-8"
            ) from error
        if not text.strip():
            raise TextError(f"{where}the text is {'blank' if text else 'empty'}; send at least one word")
        texts.append(text)
    return texts


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Check this version and read its tokenizer; an exception makes Triton refuse the version, with its text."""
        config = json.loads(args["model_config"])
        self._max_bytes = int(config["parameters"]["max_text_bytes"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            require_exported(folder, args["model_name"])
            self._tokenizer = TextTokenizer(folder)
        except (OSError, ValueError, KeyError) as error:
            reason = f"missing key {error}" if isinstance(error, KeyError) else str(error)
            raise pb_utils.TritonModelException(reason) from error

    @in_time
    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer joined requests: one response each, in order."""
        read: list[list[str] | Any] = []
        for request in requests:
            try:
                read.append(read_texts(pb_utils.get_input_tensor_by_name(request, "text").as_numpy(), self._max_bytes))
            except TextError as error:
                read.append(_refusal(str(error)))
        encoded = iter(self._tokenizer.encode([text for texts in read if isinstance(texts, list) for text in texts]))
        return [self._answer([next(encoded) for _ in texts]) if isinstance(texts, list) else texts for texts in read]

    def _answer(self, rows: list[tuple[NDArray[np.int64], int]]) -> Any:
        width = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), width), FILL, dtype=np.int64)
        for row, (ids, _) in enumerate(rows):
            input_ids[row, : len(ids)] = ids
        tokens = np.array([[count] for _, count in rows], dtype=np.int32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", input_ids),
                pb_utils.Tensor("tokens", tokens),
                pb_utils.Tensor("truncated", tokens > self._tokenizer.max_length),
            ]
        )


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
