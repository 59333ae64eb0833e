"""`TranscriptomeTokenizer`: files of raw counts to an official dataset, by the tokenization job and the export job."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cellray import storage
from cellray.compat.geneformer.dictionaries import read_dictionaries
from cellray.compat.official_files import released_vocabulary
from cellray.compat.options import NUMBER_OF_PROCESSES, check_options, instance, one_of, whole_number
from cellray.compat.wording import GENEFORMER, in_words_of
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.vocabulary import CLS, GeneVocabulary

_FORMATS = ("loom", "h5ad", "zarr")


@dataclass(frozen=True)
class TranscriptomeTokenizer:
    """Encodes cells by rank.

    Parameters
    ----------
    custom_attr_name_dict
        Obs column (loom: column attribute) to its name in the dataset, of columns to keep.
    nproc
        Ray tasks at the same time.
    chunk_size
        Needs nothing: memory is bounded in any case.
    model_input_size, special_token
        Default: the dictionaries'. Others than theirs: `model_input_size` may be smaller, `special_token` must agree.
    collapse_gene_ids
        True: counts of columns of one gene are always summed.
    use_h5ad_index
        Gene ids are the index; else var column `ensembl_id`, or the index where there is none.
    keep_counts
        False: counts stay in the source.
    model_version
        `V1` or `V2`: which dictionaries of the folder `CELLRAY_GENEFORMER`, where no files are named.
    gene_median_file, token_dictionary_file, gene_mapping_file
        Released pickles, the first two together; or a `vocabulary.json` of ours, which holds all three, as
        `token_dictionary_file` alone.
    job_options
        Of ours: further options of `jobs.tokenize_corpus`, as {"matrix": "layers/counts"}.

    Raises
    ------
    InputError
        An option has a value that cannot be had here.
    """

    custom_attr_name_dict: Mapping[str, str] | None = None
    nproc: int = 1
    chunk_size: int = 512
    model_input_size: int | None = None
    special_token: bool | None = None
    collapse_gene_ids: bool = True
    use_h5ad_index: bool = False
    keep_counts: bool = False
    model_version: str = "V2"
    gene_median_file: str | Path | None = None
    token_dictionary_file: str | Path | None = None
    gene_mapping_file: str | Path | None = None
    job_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("TranscriptomeTokenizer", vars(self), _RULES)

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """The dictionaries.

        Raises
        ------
        InputError
            They are not there, some of the files are named without those they need, or they have special tokens
            although there shall be none, or the other way round.
        """
        files = (self.token_dictionary_file, self.gene_median_file, None, self.gene_mapping_file)
        if all(file is None for file in files):
            found = released_vocabulary(self.model_version.lower(), self.model_input_size)
        else:
            found = read_dictionaries(*files, input_size=self.model_input_size)
        has = CLS in found.special_tokens
        if self.special_token not in (None, has):
            rule = f"must be {has} for dictionaries {'with' if has else 'without'} {CLS}"
            fix = "Name the dictionaries of the generation you mean, or leave special_token out."
            raise InputError("TranscriptomeTokenizer(special_token=...)", rule, str(self.special_token), fix)
        return found

    @in_words_of(GENEFORMER)
    def tokenize_data(
        self,
        data_directory: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        file_format: str = "loom",
        input_identifier: str = "",
        use_generator: bool = False,
    ) -> str:
        """Encode all files of a folder into one dataset.

        Parameters
        ----------
        data_directory
            Folder of files of raw counts, local or s3://.
        output_directory, output_prefix
            The dataset goes to `DIRECTORY/PREFIX.dataset`; `PREFIX.corpus` beside it tells what became of each cell and
            lets an interrupted run go on.
        file_format
            `loom`, `h5ad` or `zarr`.
        input_identifier
            Part of the names of the files to take.
        use_generator
            Needs nothing: datasets are always written piece by piece.

        Returns
        -------
        str
            The dataset's directory.

        Raises
        ------
        InputError
            There is no such file, one holds no raw counts or lacks a column, or the output holds something else.
        """
        given = {"file_format": file_format, "use_generator": use_generator}
        check_options("tokenize_data", given, {"file_format": one_of(*_FORMATS), "use_generator": one_of(False, True)})
        names, output = dict(self.custom_attr_name_dict or {}), storage.join(str(output_directory), output_prefix)
        part = f"*{input_identifier}*" if input_identifier else "*"
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            self.vocabulary.save(f"{folder}/vocabulary.json")
            options = {
                "source": (storage.join(str(data_directory), f"{part}.{file_format}"),),
                "vocabulary": f"{folder}/vocabulary.json",
                "output": f"{output}.corpus",
                "obs_columns": tuple(names),
                "gene_ids": "index" if self.use_h5ad_index else None,
                "input_size": self.model_input_size,
                "workers": self.nproc,
                **(self.job_options or {}),
            }
            tokenize_corpus(make_config(TokenizeConfig, options, "TranscriptomeTokenizer"))
        return export_dataset(Corpus.open(f"{output}.corpus"), f"{output}.dataset", names=names)


_FILE = instance(str, Path, type(None), what="a file or None")
_RULES = {
    "custom_attr_name_dict": instance(Mapping, type(None), what="a dict of names or None"),
    "nproc": NUMBER_OF_PROCESSES,
    "chunk_size": whole_number(1),
    "model_input_size": whole_number(5, or_none=True),
    "special_token": one_of(None, True, False),
    "collapse_gene_ids": one_of(True, fix="Leave it out: a gene that stands in several columns has one count."),
    "use_h5ad_index": one_of(False, True),
    "keep_counts": one_of(False, fix="Counts stay in the source: PREFIX.corpus names its file and row for each cell."),
    "model_version": one_of("V1", "V2"),
    "gene_median_file": _FILE,
    "token_dictionary_file": _FILE,
    "gene_mapping_file": _FILE,
}
