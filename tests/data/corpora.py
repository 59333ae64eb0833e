"""Small corpora made without Ray: units are done here and now."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cellray import schema, storage
from cellray.data.corpora import hf_import, select_cells
from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import make_part
from cellray.data.plan import common_kinds, describe_source
from cellray.data.publishing import publish_manifest
from cellray.data.tokenization import Job, TokenizeConfig, TokenizeOptions, TokenizeWorker, corpus_manifest, plan_units
from cellray.vocabulary import GeneVocabulary


def tokenized(
    sources: Sequence[Path],
    vocabulary: GeneVocabulary,
    output: Path,
    obs: Sequence[str] = (),
    cells_per_shard: int = 20,
) -> Corpus:
    """Tokenize as the job does."""
    config = TokenizeConfig(source=("s",), vocabulary="v", output=str(output), obs_columns=tuple(obs))
    plans = [describe_source(str(path), config, vocabulary) for path in sources]
    options = TokenizeOptions(vocabulary, "X", None, None, vocabulary.input_size, common_kinds(plans, obs))
    job = Job(str(output), plans, [], options, plan_units(plans, options, cells_per_shard))
    storage.write_bytes(str(output / schema.VOCABULARY), vocabulary.to_json())
    parts = [make_part(unit, TokenizeWorker(options), str(output)) for unit in job.units]
    publish_manifest(str(output), corpus_manifest(job, parts, {}))
    return Corpus.open(str(output))


def rows_of(corpus: Corpus | str) -> list[dict[str, object]]:
    """Return all cells of a corpus, with the number of their source."""
    corpus = Corpus.open(corpus) if isinstance(corpus, str) else corpus
    return [
        row | {"source": part.source}
        for part in corpus.manifest.parts
        if part.rows
        for row in corpus.read(corpus.part_uri(part), 0, part.rows).to_pylist()
    ]


@pytest.fixture
def units_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do units in this process, where a test is not about Ray."""

    def run_here(stage, output, units, worker, at_once=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return tuple(make_part(unit, worker, output) for unit in units)

    for module in (select_cells, hf_import):
        monkeypatch.setattr(module, "run_units", run_here)
        monkeypatch.setattr(module, "ensure_ray", lambda: None)
