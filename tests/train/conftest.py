"""A small corpus to train on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.vocabulary import GeneVocabulary


@pytest.fixture
def corpus(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    """Two hundred cells of random counts."""
    vocabulary.save(str(tmp_path / "vocabulary.json"))
    output = str(tmp_path / "corpus")
    source = (str(make_h5ad(cells=200)),)
    tokenize_corpus(TokenizeConfig(source=source, vocabulary=str(tmp_path / "vocabulary.json"), output=output))
    return output
