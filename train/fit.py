"""One training run, from a corpus to a production checkpoint; every stage leaves what a resumed run needs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

import verdict
from train.calibration import Calibration, calibrate, start_posterior
from train.checkpoint import PROVENANCE_FILE, save_production, verify
from train.data import DEFAULT_FOLD, IMDB, Corpus, load_corpus
from train.errors import CheckpointError, ConfigError
from train.features import EVIDENCE, FEATURES, build_model, place_evidence, prepare_evidence, prepare_features
from train.model.config import BetConfig
from train.model.pretrained import PretrainedEncoder, read_encoder
from train.preset import Preset, load_preset
from train.pretraining import PRETRAINED, PRETRAINING, pretrain
from train.tokenizer import encode, special_ids
from train.training import MILESTONES, ROLLING, Labelled, train_streams

PRODUCTION = "production"
_RUN_FILE = "run.json"
_log = logging.getLogger(__name__)

# Files whose change makes another model; the others only report or serve.
_RECIPE = (
    "calibration", "data", "embedding", "evidence", "features", "fit", "labels", "prediction", "preset", "pretraining",
    "sources", "splits", "temperature", "tokenizer", "trainer", "training", "model/*",
)  # fmt: skip


@dataclass(frozen=True)
class FitOptions:
    """What `python -m train fit` was asked for."""

    output: Path
    preset: str = "demo"
    encoder: Path | None = None  # folder of a Hugging Face encoder, for presets that want one
    data: str = IMDB
    text_column: str = "text"
    label_column: str = "label"
    fold: int = DEFAULT_FOLD
    limit: int | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    cache_dir: Path | None = None


def fit(options: FitOptions) -> Path:
    """Train, calibrate and write `<output>/production`; return its path.

    A run that is already complete, with the same options and code, is left as it is. An unfinished one goes on with
    `resume`.

    Raises:
        TrainError: for a corpus, an option or a checkpoint that cannot be used.
    """
    disable_progress_bar()  # transformers draws one for each file that it writes; ours are small
    preset = load_preset(options.preset)
    _check_encoder(options, preset)
    run_key = _run_key(options, preset)
    production = options.output / PRODUCTION
    if _is_complete(production, run_key):
        _log.info("already trained with these options: %s", production)
        return production
    started = time.perf_counter()
    _claim(options, run_key)
    corpus = load_corpus(
        options.data,
        options.text_column,
        options.label_column,
        options.fold,
        options.limit,
        cache_dir=options.cache_dir,
    )
    _log.info(
        "corpus %s: %d classes, %s",
        corpus.name,
        len(corpus.label_names),
        ", ".join(f"{part} {len(getattr(corpus, part))}" for part in ("train", "validation", "calibration", "test")),
    )
    seconds = {"data": time.perf_counter() - started}

    lap = time.perf_counter()
    features, documents = prepare_features(corpus, preset, options.output, encoder=options.encoder, seed=options.seed)
    seconds["features"] = time.perf_counter() - lap
    pretrained, weights = read_encoder(options.encoder) if options.encoder else (None, {})
    config = BetConfig(
        **{
            **preset.model,
            **special_ids(features.tokenizer),
            **({"pretrained": pretrained, "hidden_size": pretrained["hidden_size"]} if pretrained else {}),
            "vocab_size": features.tokenizer.get_vocab_size(),
            "id2label": dict(enumerate(corpus.label_names)),
            "label2id": {name: i for i, name in enumerate(corpus.label_names)},
        }
    )
    set_seed(options.seed)
    model = build_model(config, features)
    if isinstance(model.trunk.encoder, PretrainedEncoder):
        model.trunk.encoder.model.load_state_dict(weights)

    def ids(part: str) -> list[Any]:
        return encode(features.tokenizer, getattr(corpus, part).texts, config.max_tokens, config.head_tokens)

    lap = time.perf_counter()
    if preset.pretraining is not None:
        pretrain(model, documents, preset.pretraining, options.output, seed=options.seed, resume=options.resume)
    seconds["pretraining"] = time.perf_counter() - lap
    lap = time.perf_counter()
    threads = torch.get_num_threads()
    tables = prepare_evidence(documents, corpus, preset, options.output, config, seed=options.seed, threads=threads)
    place_evidence(model, tables)
    start_posterior(model.posterior, tables, corpus.train.labels, crop_weight=preset.calibration.crop_weight)
    seconds["evidence"] = time.perf_counter() - lap
    lap = time.perf_counter()
    best = train_streams(
        model,
        Labelled(documents, corpus.train.labels),
        tables.held_out,
        Labelled(ids("validation"), corpus.validation.labels),
        preset.training,
        run=options.output,
        seed=options.seed,
        resume=options.resume,
    )
    model.cpu()
    seconds["training"] = time.perf_counter() - lap
    lap = time.perf_counter()
    calibration = calibrate(
        model,
        ids("calibration"),
        corpus.calibration.labels,
        crop_weight=preset.calibration.crop_weight,
        novelty_quantile=preset.calibration.novelty_quantile,
        seed=options.seed,
    )
    seconds["calibration"] = time.perf_counter() - lap
    provenance = {
        "run_key": run_key,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "preset": preset.as_dict(),
        "seed": options.seed,
        "data": corpus.provenance,
        "best": best,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": verdict.versions(),
        "machine": verdict.machine(),
    }
    save_production(
        production,
        model=model,
        tokenizer=features.tokenizer,
        calibration=calibration,
        provenance=provenance,
        card=_card(corpus, best, calibration),
    )
    _log.info("production checkpoint: %s, %.0f s", production, time.perf_counter() - started)
    return production


def git_commit() -> str | None:
    """The commit of the code, with `+changes` where the working tree differs; None outside a git checkout."""
    root = Path(__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _check_encoder(options: FitOptions, preset: Preset) -> None:
    if preset.encoder == "folder" and options.encoder is None:
        raise ConfigError(
            f"the preset {preset.name} builds on a pretrained encoder; give its Hugging Face folder with --encoder"
        )
    if preset.encoder == "own" and options.encoder is not None:
        raise ConfigError(
            f"the preset {preset.name} trains an encoder of its own, and --encoder {options.encoder} gives another; "
            "choose --preset pretrained"
        )


def _run_key(options: FitOptions, preset: Preset) -> str:
    """Hash of all that makes a model: options, preset, the content of a data file, and the code of the recipe."""
    digest = hashlib.sha256()
    wanted = [options.data, options.text_column, options.label_column, options.fold, options.limit, options.seed]
    digest.update(json.dumps([wanted, preset.as_dict()], sort_keys=True).encode())
    data = Path(options.data)
    for file in [data, *(sorted(options.encoder.glob("*.*")) if options.encoder else [])]:
        if file.is_file():
            digest.update(file.read_bytes())
    root = Path(__file__).parent
    for pattern in _RECIPE:
        for path in sorted(root.glob(f"{pattern}.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_complete(production: Path, run_key: str) -> bool:
    if not production.is_dir():
        return False
    verify(production)
    provenance = json.loads((production / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return bool(provenance.get("run_key") == run_key)


def _claim(options: FitOptions, run_key: str) -> None:
    """Mark the output folder as this run's; refuse one that another, unfinished or finished, run left."""
    options.output.mkdir(parents=True, exist_ok=True)
    if not os.access(options.output, os.W_OK):
        raise ConfigError(f"the output folder {options.output} cannot be written; choose another with --output")
    mark = options.output / _RUN_FILE
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8")).get("run_key")
        if found == run_key and not options.resume:
            raise CheckpointError(
                f"{options.output} holds an unfinished run with these options; add --resume to go on with it, or "
                "choose another --output"
            )
        if found != run_key:
            if not options.overwrite:
                raise CheckpointError(
                    f"{options.output} holds a run with other options, data or code; choose another --output, or add "
                    "--overwrite to discard it"
                )
            _log.info("discarding the run in %s: it was made with other options, data or code", options.output)
            for part in (FEATURES, EVIDENCE, PRETRAINED, PRETRAINING, ROLLING, MILESTONES):
                shutil.rmtree(options.output / part, ignore_errors=True)
    mark.write_text(json.dumps({"run_key": run_key}) + "\n", encoding="utf-8")


def _card(corpus: Corpus, best: dict[str, Any], calibration: Calibration) -> str:
    decision = calibration.decide()
    rows = "\n".join(
        f"| {part} | {len(getattr(corpus, part)):,} |" for part in ("train", "validation", "calibration", "test")
    )
    accepted = (
        f"With an error budget of 5 % at 95 % confidence, {decision.accepted_share:.1%} of the {decision.rows} scored "
        f"calibration rows are accepted; {decision.accepted_error:.1%} of these are wrong."
        if decision.accepted_share
        else f"No answer can be accepted under an error budget of 5 %: {decision.message}"
    )
    return f"""# Bayesian Expectation Transformer: {corpus.name}

Text classifier for {len(corpus.label_names)} classes ({", ".join(corpus.label_names)}), with calibrated probabilities
and its uncertainty split in two.

| part | texts |
|---|---|
{rows}

Chosen at step {best["step"]} on validation: accuracy {best["accuracy"]:.4f}, and NLL {best["nll"]:.4f} at the
temperature that suits these rows best.
{accepted}

Intended for texts like those it was trained on. It says so itself where a text is not: `epistemic` rises with n-grams
that training never saw. It does not detect irony, quotations or texts written to deceive it.

Load it with `train.checkpoint.load_production`; serve it with `python -m export add`.
"""
