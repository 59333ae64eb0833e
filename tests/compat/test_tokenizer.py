"""`TranscriptomeTokenizer`: the golden tokens through its own calls, official datasets, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from cellray.compat.geneformer import TranscriptomeTokenizer
from cellray.errors import InputError
from cellray.schema import CorpusManifest
from cellray.vocabulary import GeneVocabulary
from tests.compat.conftest import clone

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_golden_tokens(shared: Path, tmp_path: Path, generation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """V1 with the dictionaries of a clone, V2 with files named one by one."""
    clone(shared, tmp_path, generation)
    (tmp_path / "counts").mkdir()
    shutil.copy(shared / "data" / "kang_ifnb.h5ad", tmp_path / "counts")
    shutil.copy(shared / "data" / "kang_ifnb.h5ad", tmp_path / "counts" / "other.h5ad")
    monkeypatch.setenv("CELLRAY_GENEFORMER", str(tmp_path))
    files = {f"{each}_file": tmp_path / "geneformer" / f"{name}_x.pkl" for each, name in FILES.items()}
    options = {
        "v1": {"model_version": "V1", "special_token": False, "model_input_size": 2048},
        "v2": {"special_token": True, "model_input_size": 1024, **files},
    }
    tokenizer = TranscriptomeTokenizer({"condition": "treated"}, nproc=2, **options[generation])  # type: ignore[arg-type]
    made = tokenizer.tokenize_data(tmp_path / "counts", tmp_path / "out", "kang", "h5ad", input_identifier="ifnb")
    found = load_from_disk(made)
    assert made == str(tmp_path / "out" / "kang.dataset")
    golden = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pydict()
    assert found["cell_id"][:] == golden["cell_id"]
    assert found["input_ids"][:] == golden["input_ids"]
    assert found["length"][:] == [len(row) for row in golden["input_ids"]]
    assert found["treated"][:] == golden["condition"]
    assert CorpusManifest.load(str(tmp_path / "out" / "kang.corpus")).sources[0].cells == 832


FILES = {"token_dictionary": "token_dictionary", "gene_median": "gene_median_dictionary"}


def test_a_vocabulary_of_ours(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """Finished work is left as it is; a changed request is refused."""
    make_h5ad("a.h5ad", cells=10)
    make_h5ad("b.h5ad", cells=6, seed=1)
    vocabulary.save(str(tmp_path / "v.json"))
    own = {"token_dictionary_file": tmp_path / "v.json", "use_h5ad_index": True}
    tokenizer = TranscriptomeTokenizer({"kind": "kind"}, **own)  # type: ignore[arg-type]
    made = [tokenizer.tokenize_data(tmp_path, tmp_path / "out", "x", file_format="h5ad") for _ in range(2)]
    found = load_from_disk(made[1])
    assert len(found) == 16
    assert set(found["kind"][:]) == {"a", "b"}
    assert max(found["length"][:]) <= 16
    assert tokenizer.vocabulary == vocabulary
    with pytest.raises(InputError, match="the output must be empty or hold this very result"):
        TranscriptomeTokenizer(**own).tokenize_data(tmp_path, tmp_path / "out", "x", "h5ad")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"there must be files ending in one of"):
        tokenizer.tokenize_data(tmp_path, tmp_path / "out", "y")  # there is no loom
    with pytest.raises(InputError, match=r"tokenize_data\(file_format=\.\.\.\): must be 'loom' or 'h5ad' or 'zarr'"):
        tokenizer.tokenize_data(tmp_path, tmp_path / "out", "y", "csv")
    twice = TranscriptomeTokenizer({"kind": "cell_id"}, **own)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names of the dataset's columns: every column needs its own"):
        twice.tokenize_data(tmp_path, tmp_path / "out", "z", "h5ad", "a")
    with pytest.raises(InputError, match=r"special_token=\.\.\.\): must be False for dictionaries without <cls>"):
        _ = TranscriptomeTokenizer(special_token=True, **own).vocabulary  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collapse_gene_ids": False}, "must be True; found False. Leave it out: a gene that stands in several"),
        ({"keep_counts": True}, "must be False; found True. Counts stay in the source"),
        ({"model_version": "V3"}, "must be 'V1' or 'V2'"),
        ({"model_input_size": 3}, "a whole number from 5 on, or None"),
        ({"nproc": 0}, "a whole number from 1 on"),
        ({"chunk_size": "big"}, "a whole number from 1 on"),
        ({"custom_attr_name_dict": ["kind"]}, "a dict of names or None"),
        ({"token_dictionary_file": 3}, "a file or None"),
    ],
)
def test_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="TranscriptomeTokenizer") as caught:
        TranscriptomeTokenizer(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)
