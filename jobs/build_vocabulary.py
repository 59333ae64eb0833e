"""Make a gene vocabulary: from Geneformer's released dictionaries, or from the medians of a corpus of counts."""

from pathlib import Path

from pydantic import Field, model_validator

from cellray import storage
from cellray.data.medians.build import MedianConfig, build_vocabulary, describe_origin
from cellray.data.medians.made_before import made_before
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary, import_official
from jobs._run import run_job


class BuildVocabularyConfig(MedianConfig):
    """Make a gene vocabulary (gene ids, token ids, nonzero medians): give --source or --from-geneformer."""

    output: str = Field(description="where vocabulary.json goes")
    from_geneformer: Path | None = Field(
        None, description="directory with Geneformer's token_dictionary*.pkl, gene_median_dictionary*.pkl, ..."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "BuildVocabularyConfig":
        if bool(self.source) == bool(self.from_geneformer):
            raise ValueError("give either --source or --from-geneformer")
        useless = self.model_fields_set & (set(MedianConfig.model_fields) - {"source", "input_size"})
        useless = {name for name in useless if getattr(self, name) != type(self).model_fields[name].default}
        if self.from_geneformer and useless:
            raise ValueError(f"{', '.join(sorted(useless))}: no meaning with --from-geneformer")
        return self


def main(config: BuildVocabularyConfig) -> str:
    """Make the vocabulary and write it; one that this very request made is left as it is."""
    output = storage.absolute(config.output)
    if config.from_geneformer:
        vocabulary = import_official(config.from_geneformer, config.input_size)
    elif there := made_before(output, config):
        return describe(f"{config.output} is complete already", there)
    else:
        vocabulary = build_vocabulary(config)
    if not storage.exists(output):
        vocabulary.save(output)
    elif storage.read_bytes(output) != vocabulary.to_json():
        raise InputError(output, "the output must be new", "a file of other content", "Choose another --output.")
    return describe(f"wrote {config.output}", vocabulary)


def describe(head: str, vocabulary: GeneVocabulary) -> str:
    """Say what the vocabulary holds and how it came about."""
    made = (
        f"{head}: {len(vocabulary.genes):,} genes ({len(vocabulary.medians):,} with a median), "
        f"ids: {vocabulary.id_type}, input size {vocabulary.input_size:,}, digest {vocabulary.digest[:12]}"
    )
    return "\n".join(filter(None, [made, describe_origin(vocabulary)]))


if __name__ == "__main__":
    run_job("build_vocabulary", BuildVocabularyConfig, main)
