"""The vocabulary: tokens, digests, the file, the official dictionaries."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellray import storage
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary, check_match, import_official


def test_genes_get_tokens_in_the_order_of_their_ids() -> None:
    vocabulary = GeneVocabulary.from_medians({"ENSG2": 2.0, "ENSG1": 1.0}, "v2", "ensembl")
    assert dict(vocabulary.special_tokens) == {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    assert dict(vocabulary.genes) == {"ENSG1": 4, "ENSG2": 5}
    assert vocabulary.input_size == 4096
    assert np.array_equal(vocabulary.median_of_token, [np.nan] * 4 + [1.0, 2.0], equal_nan=True)


def test_the_file_gives_back_the_same_vocabulary(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    path = str(tmp_path / "v.json")
    vocabulary.save(path)
    assert GeneVocabulary.load(path) == vocabulary
    assert GeneVocabulary.load(path).to_json() == vocabulary.to_json()


def test_where_medians_come_from_is_kept_and_changes_no_digest(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    told = replace(vocabulary, origin={"method": "exact", "cells": 7})
    assert told.full_digest == vocabulary.full_digest
    assert b"origin" not in vocabulary.to_json()
    told.save(str(tmp_path / "v.json"))
    assert GeneVocabulary.load(str(tmp_path / "v.json")).origin == {"method": "exact", "cells": 7}


def test_a_changed_file_is_refused(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    value = json.loads(vocabulary.to_json())
    value["medians"]["ENSG00000000001"] = 9.0
    (tmp_path / "v.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="content must match its digest"):
        GeneVocabulary.load(str(tmp_path / "v.json"))


def test_the_digest_tells_tokens_and_medians_but_not_name_tables(vocabulary: GeneVocabulary) -> None:
    named = GeneVocabulary(
        vocabulary.special_tokens, vocabulary.genes, vocabulary.medians, 16, "ensembl", symbols={"A": "ENSG00000000001"}
    )
    assert named.digest == vocabulary.digest
    assert named.full_digest != vocabulary.full_digest
    other = GeneVocabulary(
        vocabulary.special_tokens, vocabulary.genes, {**vocabulary.medians, "ENSG00000000001": 7.0}, 16, "ensembl"
    )
    assert other.digest != vocabulary.digest
    with pytest.raises(InputError, match="model M: its vocabulary must be that of corpus C"):
        check_match("model M", other, "corpus C", vocabulary)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"genes": {}}, "there must be genes"),
        ({"genes": {"G": 5}}, "without gap"),
        ({"medians": {"G": 0.0}}, "positive"),
        ({"medians": {"H": 1.0}}, "must have a token"),
        ({"special_tokens": {"<pad>": 0, "<mask>": 1, "<cls>": 3}}, "come together"),
        ({"input_size": 2}, "leave room"),
    ],
)
def test_nonsense_is_refused(change: dict[str, object], rule: str) -> None:
    fields = {"special_tokens": {"<pad>": 0, "<mask>": 1}, "genes": {"G": 2}, "medians": {"G": 1.0}, "input_size": 9}
    with pytest.raises(InputError, match=rule):
        GeneVocabulary(**(fields | change))  # type: ignore[arg-type]


def _official(directory: Path, tokens: dict[str, object], medians: dict[str, object]) -> Path:
    for name, table in (("token_dictionary_x", tokens), ("gene_median_dictionary_x", medians)):
        (directory / f"{name}.pkl").write_bytes(pickle.dumps(table))
    return directory


def test_official_dictionaries_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    tokens = {"<pad>": 0, "<mask>": 1, "ENSG1": np.int16(2), "ENSG2": np.int64(3)}
    _official(tmp_path, tokens, {"ENSG1": np.float64(1.25), "ENSG9": 3.0})
    (tmp_path / "gene_name_id_dict_x.pkl").write_bytes(pickle.dumps({"TP53": "ENSG1"}))
    (tmp_path / "ensembl_mapping_dict_x.pkl").write_bytes(pickle.dumps({"ENSG0": "ENSG1", "ENSG1": "ENSG1"}))
    vocabulary = import_official(tmp_path)
    assert dict(vocabulary.genes) == {"ENSG1": 2, "ENSG2": 3}
    assert dict(vocabulary.medians) == {"ENSG1": 1.25}
    assert dict(vocabulary.symbols) == {"TP53": "ENSG1"}
    assert dict(vocabulary.retired_ids) == {"ENSG0": "ENSG1"}
    assert vocabulary.input_size == 2048


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must never be printed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": _Evil()}), "the name builtins.print"),
        (pickle.dumps({"a": np.array(["x"], dtype=object)}), "the name numpy"),
        (pickle.dumps([1, 2]), "must hold a dict"),
        (pickle.dumps({"a": [1]}), "must map strings"),
        (pickle.dumps({1: "a"}), "must map strings"),
        (b"not a pickle", "intact pickle|plain dicts"),
        (pickle.dumps({"a": 1})[:-3], "plain dicts|intact"),
        (b"", "plain dicts|intact"),
        (b"cos\nsystem\n(S'true'\ntR.", "the name os.system"),
        (b"\x80\x04cnumpy\ndtype\n(S'O'\ntR.", "must hold a dict"),
        (b"\x80\x04cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'x'\ntR.", "intact pickle|plain bytes"),
    ],
)
def test_a_pickle_that_asks_for_more_is_refused(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _official(tmp_path, {"<pad>": 0}, {})
    (tmp_path / "token_dictionary_x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_official(tmp_path)
    assert "never be printed" not in capsys.readouterr().out


def test_two_candidates_are_named(tmp_path: Path) -> None:
    _official(tmp_path, {}, {})
    (tmp_path / "token_dictionary_y.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=r"token_dictionary_x\.pkl', 'token_dictionary_y\.pkl"):
        import_official(tmp_path)


def test_the_released_v1_dictionaries(shared: Path) -> None:
    vocabulary = import_official(shared / "data" / "geneformer_v1")
    assert len(vocabulary) == 25426
    assert len(vocabulary.medians) == 25424
    assert vocabulary.genes["ENSG00000000003"] == 2
    assert vocabulary.symbols["TP53"] == "ENSG00000141510"


def test_an_untouched_file_needs_no_digests_and_a_touched_one_is_checked(
    vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.json"
    vocabulary.save(str(path))
    written = path.read_bytes()
    path.write_bytes(json.dumps(json.loads(written)).encode())  # the same content, laid out otherwise
    assert GeneVocabulary.load(str(path)) == vocabulary
    path.write_bytes(written.replace(b'"input_size": 16', b'"input_size": 17'))
    with pytest.raises(InputError, match="content must match its digest"):
        GeneVocabulary.load(str(path))
    path.write_bytes(written)
    monkeypatch.setattr(storage, "sha256_json", lambda _: pytest.fail("computed anew"))
    loaded = GeneVocabulary.load(str(path))
    monkeypatch.undo()
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest
