"""Tiny Hugging Face classifiers of every encoder family, with random weights and conventions of their own.

Each has the special tokens, padding id and positions that its family has in the wild. A random model says the same of
nearly every text, so its weights are drawn wide and its head is centred on the texts; and the calibration rows' labels
are drawn from the model's own probabilities, so that it is right as often as it says, and a budget can be proven.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

transformers.utils.logging.disable_progress_bar()

LABELS = ("anger", "joy", "neither")
LIMIT = 40
_WORDS = 60  # the most frequent ones are pieces of their own
_TOPICS = ("film", "story", "actor", "ending", "score", "camera", "joke", "scene", "plot", "song")
_MOODS = ("wonderful", "terrible", "dull", "moving", "strange", "loud", "clever", "slow", "warm", "cold")
TEXTS = tuple(
    " and ".join(f"the {_TOPICS[(i * 7 + j * 3) % 10]} is {_MOODS[(i * 3 + j * j) % 10]}" for j in range(1 + i % 9))
    + ("!", ".", "?")[i % 3]
    for i in range(240)
)


@dataclass(frozen=True)
class Family:
    """How one family is configured: special tokens in the order of their ids, and what its configuration is made of."""

    config: Callable[..., PretrainedConfig]
    special: tuple[str, ...]  # opening, closing, padding and unknown tokens stand among them under these names
    opening: str
    closing: str
    padding: str
    unknown: str
    positions: int | None = LIMIT
    more: dict[str, Any] | None = None


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_BERT = (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", "[PAD]", "[UNK]")
_ROBERTA = (("<s>", "<pad>", "</s>", "<unk>"), "<s>", "</s>", "<pad>", "<unk>")
FAMILIES = {
    "bert": Family(transformers.BertConfig, *_BERT, more=_SMALL),
    "distilbert": Family(
        transformers.DistilBertConfig, *_BERT, more={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    ),
    "roberta": Family(transformers.RobertaConfig, *_ROBERTA, LIMIT + 2, {**_SMALL, "type_vocab_size": 1}),
    "xlm-roberta": Family(transformers.XLMRobertaConfig, *_ROBERTA, LIMIT + 2, {**_SMALL, "type_vocab_size": 1}),
    "camembert": Family(transformers.CamembertConfig, *_ROBERTA, LIMIT + 2, {**_SMALL, "type_vocab_size": 1}),
    "albert": Family(
        transformers.AlbertConfig,
        ("<pad>", "<unk>", "[CLS]", "[SEP]"),
        "[CLS]",
        "[SEP]",
        "<pad>",
        "<unk>",
        more={**_SMALL, "embedding_size": 16},
    ),
    "electra": Family(transformers.ElectraConfig, *_BERT, more={**_SMALL, "embedding_size": 16}),
    "mpnet": Family(transformers.MPNetConfig, *_ROBERTA, LIMIT + 2, _SMALL),
    "deberta-v2": Family(
        transformers.DebertaV2Config,
        *(("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[CLS]", "[SEP]", "[PAD]", "[UNK]"),
        more={
            **_SMALL, "type_vocab_size": 0, "relative_attention": True, "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
    "modernbert": Family(
        transformers.ModernBertConfig,
        *(("[UNK]", "[CLS]", "[SEP]", "[PAD]"), "[CLS]", "[SEP]", "[PAD]", "[UNK]"),
        positions=1000,
        more={**_SMALL, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    # Beyond the list: the answer of the first depends on padding, positions of the second begin behind the padding's.
    "fnet": Family(transformers.FNetConfig, *_BERT, more={k: v for k, v in _SMALL.items() if "heads" not in k}),
    "data2vec-text": Family(transformers.Data2VecTextConfig, *_ROBERTA, LIMIT + 2, {**_SMALL, "type_vocab_size": 1}),
}  # fmt: skip


def without_limit(family: str) -> bool:
    """Whether --max-tokens has to be given."""
    return family in ("deberta-v2", "modernbert")


def write_folder(folder: Path, family: str = "bert", labels: tuple[str, ...] = LABELS, **config: Any) -> Path:
    """A model with its tokenizer, as `save_pretrained` writes them; the tokenizer keeps padding and truncation at 7."""
    kind = FAMILIES[family]
    tokenizer = tokenizer_of(kind)
    ids = {token: tokenizer.token_to_id(token) for token in kind.special}
    torch.manual_seed(3)
    names = dict(enumerate(labels))
    given = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": kind.positions,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        "pad_token_id": ids[kind.padding],
        "cls_token_id": ids[kind.opening],
        "sep_token_id": ids[kind.closing],
        "bos_token_id": ids[kind.opening],
        "eos_token_id": ids[kind.closing],
        **(kind.more or {}),
    }
    model = AutoModelForSequenceClassification.from_config(kind.config(**{**given, **config})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
        encodings = tokenizer.encode_batch(list(TEXTS[:60]))
        logits = torch.cat([model(input_ids=torch.tensor([row.ids[:LIMIT]])).logits for row in encodings])
        head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(labels)][-1]
        scale = 6 / logits.std(0)
        head.weight.mul_(scale[:, None])
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
    model.save_pretrained(folder)
    tokenizer.enable_padding(length=7, pad_id=ids[kind.padding], pad_token=kind.padding)
    tokenizer.enable_truncation(7)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_rows(folder: Path, to: Path, *, rows: int = 160) -> Path:
    """A CSV of texts, labelled as the model in `folder` would have it.

    A label is drawn from the probabilities, and so is each of several labels (joined by "|"); a regression's number is
    the value with noise of standard deviation 1.
    """
    random = np.random.default_rng(0)
    config = json.loads((folder / "config.json").read_text())
    labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]

    def drawn(logits: torch.Tensor) -> Any:
        if config.get("problem_type") == "regression":
            return round(float(logits[0]) + random.normal(), 3)
        if config.get("problem_type") == "multi_label_classification":
            carried = random.random(len(labels)) < logits.sigmoid().numpy()
            return "|".join(label for label, yes in zip(labels, carried, strict=True) if yes)
        return labels[random.choice(len(labels), p=logits.softmax(0).numpy())]

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LIMIT)
    with to.open("w", newline="", encoding="utf-8") as file, torch.no_grad():
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text in TEXTS[:rows]:
            logits = model(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits[0].double()
            writer.writerow([text, drawn(logits)])
    return to


def tokenizer_of(kind: Family) -> Tokenizer:
    """A WordPiece tokenizer of the texts' characters and most frequent words, with the special tokens of a family.

    Its vocabulary is counted here: the library's trainer breaks ties at random, and every weight would mean another
    piece in the next process.
    """
    words = Counter(word for text in TEXTS for word in re.findall(r"\w+", text.lower()))
    characters = sorted({*"<>[]/ckpsu!.?", *"".join(words)})
    frequent = sorted(word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:_WORDS])
    pieces = [*kind.special, *characters, *(f"##{c}" for c in characters), *(w for w in frequent if len(w) > 1)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=kind.unknown))
    tokenizer.add_special_tokens(list(kind.special))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{kind.opening} $A {kind.closing}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (kind.opening, kind.closing)],
    )
    return tokenizer


def labels_of(path: Path) -> np.ndarray:
    """The labels of a written file, for tests that look at them."""
    with path.open(encoding="utf-8") as file:
        return np.array([row["label"] for row in csv.DictReader(file)])


def fix_logits(folder: Path, logits: tuple[float, ...]) -> Path:
    """Make a written BERT answer every text with these logits."""
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].zero_()
    weights["classifier.bias"].copy_(torch.tensor(logits))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
