"""A vocabulary knows its request: what is finished is returned, what is in the way is refused, nothing is measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cellray import storage
from cellray.data.medians.made_before import made_before, request_of
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from jobs import build_vocabulary
from jobs.build_vocabulary import BuildVocabularyConfig

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(config: object) -> GeneVocabulary:
        raise AssertionError(f"hours of measuring: {config}")

    monkeypatch.setattr(build_vocabulary, "build_vocabulary", measure)


@pytest.fixture
def config(make_h5ad: Make, tmp_path: Path) -> BuildVocabularyConfig:
    (tmp_path / "genes.csv").write_text("gene_id,gene_type\nENSG00000000001,miRNA\n")
    return BuildVocabularyConfig(
        source=(str(make_h5ad("a.h5ad")), str(make_h5ad("b.h5ad", seed=1))),
        gene_table=str(tmp_path / "genes.csv"),
        output=str(tmp_path / "v.json"),
    )


@pytest.fixture
def made(config: BuildVocabularyConfig, vocabulary: GeneVocabulary) -> bytes:
    """Save a vocabulary as the job would have."""
    replace(vocabulary, origin={"request": request_of(config)}).save(config.output)
    return storage.read_bytes(config.output)


def test_a_rerun_measures_and_writes_nothing(
    config: BuildVocabularyConfig, made: bytes, vocabulary: GeneVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_vocabulary, "describe_origin", lambda _: "")
    stamp = storage.stamp(config.output)
    for workers in (None, 3):
        told = build_vocabulary.main(config.model_copy(update={"workers": workers}))
        assert told.startswith(f"{config.output} is complete already: 30 genes (30 with a median)")
    assert storage.stamp(config.output) == stamp
    assert storage.read_bytes(config.output) == made
    assert made_before(config.output, config) == vocabulary


@pytest.mark.parametrize(
    "change",
    [{"generation": "v2"}, {"exact": True}, {"matrix": "raw"}, {"gene_types": ("miRNA",)}, {"gene_table": None}],
)
def test_other_options_are_refused_at_once(
    config: BuildVocabularyConfig, made: bytes, change: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"v\.json: the output must be new, or hold this very result; found a vocab"):
        build_vocabulary.main(config.model_copy(update=change))
    assert storage.read_bytes(config.output) == made


def test_another_version_of_a_source_or_table_is_another_request(
    config: BuildVocabularyConfig, made: bytes, make_h5ad: Make, tmp_path: Path
) -> None:
    first = request_of(config)
    (tmp_path / "genes.csv").write_text("gene_id,gene_type\nENSG00000000002,miRNA\n")
    second = request_of(config)
    make_h5ad("b.h5ad", cells=51)
    assert len({first, second, request_of(config)}) == 3
    with pytest.raises(InputError, match="other input or options"):
        build_vocabulary.main(config)


def test_what_is_no_vocabulary_or_knows_no_request_is_refused(
    config: BuildVocabularyConfig, vocabulary: GeneVocabulary
) -> None:
    assert made_before(config.output, config) is None
    Path(config.output).write_text("{}")
    with pytest.raises(
        InputError, match="the output must be new, or hold this very result; found a file that is no voc"
    ):
        build_vocabulary.main(config)
    vocabulary.save(config.output)
    with pytest.raises(InputError, match="found a vocabulary of other input or options"):
        build_vocabulary.main(config)
