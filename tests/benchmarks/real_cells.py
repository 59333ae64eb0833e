"""Fine-tuning on real cells: a small pretrained model, the same without pretraining, and logistic regression.

`python -m tests.benchmarks.real_cells DATA --output FOLDER` reads Geneformer's V1 dictionaries, two sets of labelled
cells (`pbmc_facs.h5ad`, `kang_ifnb.h5ad`) and 500 encoded cells (`genecorpus_500.parquet`) from DATA. It pretrains on
all of them without their labels, fine-tunes on the labels, and scores every way on the same test cells. Every stage
goes on where an earlier call was broken off. `--only NAME` fine-tunes one set, `--steps 0` only prepares.
"""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from cellray import schema
from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.data.corpora.corpus import Corpus, scan
from cellray.data.corpora.hf_import import ImportConfig, import_dataset
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.train.finetune import FinetuneConfig, finetune
from cellray.train.pretrain import PretrainConfig, pretrain, write_initial_model
from cellray.train.tasks.cells import CellTask, CellTaskConfig
from cellray.train.tasks.labels import ClassLabels
from cellray.train.tasks.table import read_task
from cellray.vocabulary import import_official
from tests.benchmarks.classification import log_normalised, logistic_regression

_FIGURES = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Labelled:
    """A set of labelled cells.

    Attributes
    ----------
    file, columns
        The counts and the obs columns that are read.
    task
        Text of the task file.
    epochs
        Times each cell is seen in fine-tuning.
    """

    file: str
    columns: tuple[str, ...]
    task: str
    epochs: float


SETS = {
    "facs": Labelled(
        "pbmc_facs.h5ad",
        ("celltype",),
        'task = "cell_classification"\nlabel = "celltype"\nsplit = { folds = 5, validation_fraction = 0 }\n',
        1,
    ),
    "interferon": Labelled(
        "kang_ifnb.h5ad",
        ("condition", "donor"),
        'task = "cell_classification"\nlabel = "condition"\n[split]\nkind = "stratified_grouped"\ngroup = "donor"\n'
        "folds = 2\nvalidation_fraction = 0\ndrop_ungrouped = true\n",
        10,
    ),
}
"""The donor of most stimulated cells is not known: only cells with a donor take part."""


def main() -> None:
    """Run what is not done yet and print the table."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cellray").setLevel(logging.INFO)
    options = _options()
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = out / "vocabulary.json"
    if not vocabulary.exists():
        import_official(options.data / "geneformer_v1").save(str(vocabulary))
    corpora = [_tokenized(each, name, options) for name, each in SETS.items()]
    corpora.append(_genecorpus(options))
    together = str(out / "together")
    concat_corpora(ConcatConfig(corpus=tuple(corpora), output=together))
    if not options.steps:
        return
    training = pretraining(out, options.preset, options.steps, options.threads)
    trained = pretrain(training)
    print(f"pretrained: {trained.steps:,} steps, validation loss {trained.validation_loss:.3f}")
    write_initial_model(training, str(out / "untrained"))
    rows = [row for name in options.only or SETS for row in _compare(name, options)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    (out / "figures.md").write_text(_markdown(table))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser()
    options.add_argument("data", type=Path, help="folder of the data")
    options.add_argument("--output", type=Path, required=True, help="folder of everything that is made")
    options.add_argument("--preset", default="tiny", help="size of the model")
    options.add_argument("--steps", type=int, default=900, help="pretraining steps of 16 cells; 0: only prepare")
    options.add_argument("--input-size", type=int, default=128, help="most tokens of a cell")
    options.add_argument("--threads", type=int, default=2, help="torch threads")
    options.add_argument("--rates", type=float, nargs="+", default=[5e-5, 5e-4], help="learning rates of fine-tuning")
    options.add_argument("--only", nargs="*", choices=list(SETS), help="sets to fine-tune on; default: all")
    return options.parse_args()


def _tokenized(each: Labelled, name: str, options: argparse.Namespace) -> str:
    corpus = str(options.output / name)
    tokenize_corpus(
        TokenizeConfig(
            source=(str(options.data / each.file),),
            vocabulary=str(options.output / "vocabulary.json"),
            output=corpus,
            obs_columns=each.columns,
            input_size=options.input_size,
        )
    )
    return corpus


def _genecorpus(options: argparse.Namespace) -> str:
    """Import the encoded cells, cut to the input size: ranks come first, so that is what tokenization would give."""
    from datasets import Dataset

    corpus, folder = str(options.output / "genecorpus"), options.output / "genecorpus.dataset"
    if not folder.exists():
        rows = pq.read_table(options.data / "genecorpus_500.parquet", columns=[schema.INPUT_IDS])[schema.INPUT_IDS]
        cut = pc.list_slice(rows, 0, options.input_size, return_fixed_size_list=False)
        Dataset.from_dict({schema.INPUT_IDS: cut.to_pylist()}).save_to_disk(str(folder))
    vocabulary = str(options.output / "vocabulary.json")
    import_dataset(
        ImportConfig(dataset=str(folder), vocabulary=vocabulary, output=corpus, input_size=options.input_size)
    )
    return corpus


def pretraining(out: Path, preset: str, steps: int, threads: int) -> PretrainConfig:
    """Return the options of the pretraining."""
    return PretrainConfig(
        corpus=str(out / "together"),
        output=str(out / "pretrained"),
        preset=preset,
        max_steps=steps,
        batch_size=16,
        validate_every=max(1, steps // 10),
        threads=threads,
        tracking_uri=f"sqlite:///{out.resolve()}/mlflow.db",
    )


def fine_tuning(out: Path, name: str, start: str, rate: float, threads: int) -> FinetuneConfig:
    """Return the options of fine-tuning on one of the sets."""
    return FinetuneConfig(
        corpus=str(out / name),
        model=str(out / start),
        task=_task_file(out, name),
        output=str(out / f"{name}_{start}_{rate:g}"),
        epochs=SETS[name].epochs,
        learning_rate=rate,
        threads=threads,
        tracking_uri=f"sqlite:///{out.resolve()}/mlflow.db",
    )


def _task_file(out: Path, name: str) -> str:
    (out / f"{name}.toml").write_text(SETS[name].task)
    return str(out / f"{name}.toml")


def _compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score logistic regression and each model and learning rate on the same folds."""
    out: Path = options.output
    rows = [_row(name, "logistic regression", _baseline(name, options))]
    for rate in options.rates:
        for start in ("pretrained", "untrained"):
            config = fine_tuning(out, name, start, rate, options.threads)
            report = Path(finetune(config).report)
            (head,) = json.loads((report / "metrics.json").read_text())["heads"].values()
            rows.append(_row(name, f"{start}, learning rate {rate:g}", head))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _baseline(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of logistic regression on the folds of the task itself."""
    corpus, config = Corpus.open(str(options.output / name)), read_task(_task_file(options.output, name))
    assert isinstance(config, CellTaskConfig)
    task: CellTask = config.open(corpus)
    ((head, labels),) = task.labels.items()
    assert isinstance(labels, ClassLabels)
    row_n = np.concatenate(
        list(scan(corpus, [schema.SOURCE_ROW], lambda _, cells: cells[schema.SOURCE_ROW].to_numpy()))
    )
    x_ng = sparse.csr_matrix(anndata.read_h5ad(options.data / SETS[name].file).X)[row_n]
    result = logistic_regression(log_normalised(x_ng), labels.code_n, labels.classes, task.folds, head)
    return result.to_json()


def _row(name: str, how: str, head: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": name, "way": how}
    for figure in _FIGURES:
        row[figure] = f"{head['mean'][figure]:.3f} ± {head['std'][figure]:.3f}"
        row[f"{figure}, pooled"] = f"{head['pooled']['metrics'][figure]:.3f}"
    return row


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
