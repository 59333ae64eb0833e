"""Files of dictionaries that `TranscriptomeTokenizer` is told: those it takes, and that none is passed over."""

from pathlib import Path

import pytest

from cellray.compat.geneformer import TranscriptomeTokenizer
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary


def test_dictionaries_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELLRAY_GENEFORMER", raising=False)
    with pytest.raises(InputError, match="model_version V2: its dictionaries must be on this machine; found none"):
        _ = TranscriptomeTokenizer().vocabulary
    with pytest.raises(InputError, match=r"tokens and medians go together; found '.*t\.pkl' alone"):
        _ = TranscriptomeTokenizer(token_dictionary_file=tmp_path / "t.pkl").vocabulary
    with pytest.raises(InputError, match=r"t\.pkl: the file must exist"):
        _ = TranscriptomeTokenizer(
            token_dictionary_file=tmp_path / "t.pkl", gene_median_file=tmp_path / "m.pkl"
        ).vocabulary


@pytest.mark.parametrize("option", ["gene_median_file", "gene_mapping_file"])
def test_a_file_that_would_not_be_read_is_refused(vocabulary: GeneVocabulary, tmp_path: Path, option: str) -> None:
    """Neither beside a vocabulary of ours, which has its own, nor without the tokens it belongs to."""
    vocabulary.save(str(tmp_path / "v.json"))
    file = {option: tmp_path / "no_such_file.pkl"}
    with pytest.raises(InputError, match=r"v\.json: a vocabulary\.json is named alone; found '.*no_such_file\.pkl'"):
        _ = TranscriptomeTokenizer(token_dictionary_file=tmp_path / "v.json", **file).vocabulary
    with pytest.raises(InputError, match=r"tokens and medians go together; found '.*no_such_file\.pkl' alone"):
        _ = TranscriptomeTokenizer(**file).vocabulary
    assert TranscriptomeTokenizer(token_dictionary_file=tmp_path / "v.json").vocabulary == vocabulary
