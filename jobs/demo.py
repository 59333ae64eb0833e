"""The whole chain on one file: vocabulary, tokens, a small model, embeddings, UMAP, and what they are worth."""

import logging
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema
from cellray.config import JobConfig
from cellray.data.medians.build import MedianConfig, build_vocabulary
from cellray.data.report import report
from cellray.data.sources import demo_data
from cellray.data.sources.contract import open_source, require_obs
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.evaluate import knn_label_accuracy, pca_of_log_counts
from cellray.infer.results import Embeddings, draw_umap, write_h5ad
from cellray.train.pretrain import PretrainConfig, pretrain, write_initial_model
from jobs._run import run_job

logger = logging.getLogger("cellray.demo")


class DemoConfig(JobConfig):
    """Run the whole chain on scanpy's 700 labelled blood cells, or on a file of yours."""

    data: str | None = Field(None, description="an .h5ad of raw counts, default: the cells scanpy ships")
    label: str | None = Field(None, description="obs column with the cells' labels; needed with --data")
    vocabulary: str | None = Field(None, description="vocabulary.json, default: built from the data")
    output: Path = Field(
        Path("demo_output"), description="directory of everything the demo makes; must be new or its own"
    )
    steps: int = Field(600, ge=1, description="pretraining steps [steps]")
    batch_size: int = Field(16, ge=1, description="cells of a step [cells]")
    input_size: int = Field(512, gt=4, description="most tokens of a cell [tokens]")
    threads: int = Field(2, ge=1, description="torch threads")


def main(config: DemoConfig) -> str:
    """Run the chain and tell what came out."""
    began = time.monotonic()
    out = config.output
    source, label, totals, others = _data(config)
    vocabulary = config.vocabulary or str(out / "vocabulary.json")
    if config.vocabulary is None:
        build_vocabulary(MedianConfig(source=(source,), n_counts_column=totals, exact=True)).save(vocabulary)
    corpus = str(out / "corpus")
    tokenize = TokenizeConfig(
        source=(source,),
        vocabulary=vocabulary,
        output=corpus,
        obs_columns=(label, *others),
        n_counts_column=totals,
        input_size=config.input_size,
    )
    logger.info("%s", report(tokenize_corpus(tokenize)))
    training = PretrainConfig(
        corpus=corpus,
        output=str(out / "model"),
        max_steps=config.steps,
        batch_size=config.batch_size,
        validate_every=max(1, config.steps // 3),
        log_every=max(1, config.steps // 10),
        threads=config.threads,
        experiment="cellray demo",
    )
    trained = pretrain(training)
    write_initial_model(training, str(out / "untrained_model"))
    accuracy, cells = _compare(config, corpus, source, label)
    return f"""
k-NN accuracy of {label!r} over {cells:,} cells (5 folds, 15 neighbours):
  pretrained for {trained.steps:,} steps  {accuracy["pretrained"]:.3f}
  untrained weights         {accuracy["untrained"]:.3f}
  PCA of log counts         {accuracy["pca"]:.3f}

corpus      {corpus}
model       {out / "model"}
embeddings  {out / "embeddings.h5ad"} (obsm['X_cellray'])
picture     {out / "umap.png"}
run         {trained.tracked}

Next: look at the picture; run it on your own cells with
  make demo DATA=file.h5ad LABEL=obs_column
or take the steps one by one, as README.md shows. {time.monotonic() - began:.0f} s in all.
wrote {out}"""


def _data(config: DemoConfig) -> tuple[str, str, str | None, tuple[str, ...]]:
    """Return the file of counts, its label column and, for the shipped cells, that of total counts and others."""
    if config.data is None:
        path = config.output / "pbmc.h5ad"
        if not path.exists():
            demo_data.restore_pbmc(path)
        return str(path), demo_data.LABEL, demo_data.TOTALS, demo_data.OTHER_COLUMNS
    if config.label is None:
        raise InputError("--data", "needs --label, the obs column with the cells' labels", "none", "Give both.")
    with open_source(config.data) as source:
        require_obs(source, [config.label])
    return config.data, config.label, None, ()


def _compare(config: DemoConfig, corpus: str, source: str, label: str) -> tuple[dict[str, float], int]:
    """Embed with the trained and the untrained model, draw the former, score both and the baseline."""
    out, accuracy = config.output, {}
    for name, model in (("untrained", "untrained_model"), ("pretrained", "model")):
        directory = str(out / f"{name}_embeddings")
        embed_cells(EmbedConfig(corpus=corpus, model=str(out / model), output=directory, threads=config.threads))
        embeddings = Embeddings.open(directory)
        table = embeddings.table()
        labels = table[label].cast("string").fill_null("(missing)").to_numpy(zero_copy_only=False).astype(str)
        accuracy[name] = knn_label_accuracy(embeddings.matrix(table), labels)
    write_h5ad(embeddings, str(out / "embeddings.h5ad"))
    draw_umap(embeddings, label, str(out / "umap.png"), f"pretrained for {config.steps} steps")
    rows: NDArray[np.int64] = table[schema.SOURCE_ROW].to_numpy()
    accuracy["pca"] = knn_label_accuracy(pca_of_log_counts(Path(source))[rows], labels)
    return accuracy, len(labels)


if __name__ == "__main__":
    run_job("demo", DemoConfig, main)
