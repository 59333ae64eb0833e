"""From a block of raw counts to token rows: what tokenization and the server both do with cells.

Knows the counts, what their columns mean and the vocabulary; where cells come from and go to it does not know.
"""

from cellray.data import gene_ids
from cellray.data.checks import BlockTotals, check_block, duplicate_entries, sum_duplicates
from cellray.data.sources.contract import CountBlock, MatrixHolder
from cellray.rank_value import EncodedCells, encode_rows
from cellray.vocabulary import GeneVocabulary, TokenLayout


def encode_block(
    block: CountBlock,
    source: MatrixHolder,
    mapping: gene_ids.ColumnMapping,
    vocabulary: GeneVocabulary,
    layout: TokenLayout,
) -> tuple[EncodedCells, BlockTotals, int]:
    """Check a block of counts and encode its cells.

    Parameters
    ----------
    block, source
        Counts, and what to call their place in messages.
    mapping
        What the block's columns mean; columns of one gene are summed.
    vocabulary, layout
        Of the token rows.

    Returns
    -------
    tuple[EncodedCells, BlockTotals, int]
        Token rows, totals of the cells, and how many values shared their row and column with an earlier one.

    Raises
    ------
    InputError
        The block is damaged or holds no raw counts.
    """
    totals = check_block(block, source)
    genes = mapping.genes
    duplicates = 0 if totals.canonical else duplicate_entries(block)
    if mapping.repeated or not totals.canonical:
        block = sum_duplicates(block, genes.token_g, len(vocabulary))
        genes = gene_ids.vocabulary_genes(vocabulary)
    return encode_rows(block.counts, block.columns, block.indptr, genes, layout), totals, duplicates
