"""Write a token corpus as a Hugging Face dataset in the official Geneformer layout."""

from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.hf_dataset import ExportConfig, dataset_schema, export_dataset
from jobs._run import run_job


def main(config: ExportConfig) -> str:
    """Export and say what was written."""
    corpus = Corpus.open(config.corpus)
    uri = export_dataset(corpus, config.output, config.cells_per_file)
    return f"columns: {', '.join(dataset_schema(corpus).names)}\n{uri}: dataset of {corpus.manifest.rows:,} cells"


if __name__ == "__main__":
    run_job("export_dataset", ExportConfig, main)
