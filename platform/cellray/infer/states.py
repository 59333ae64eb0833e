"""Embeddings of cell states: given, or the exact mean or median over a state's cells, which the screen embeds."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.errors import InputError, listing
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig

logger = logging.getLogger(__name__)

STATE = "state"
FOLDER = "states"
"""Folder of the embeddings, below the directory of a screen."""


def state_embeddings(config: "ScreenConfig", corpus: Corpus) -> dict[str, NDArray[np.float32]]:
    """Embed the corpus as the screen does and return each state's embedding. Shape (hidden,).

    The embeddings stay beside the screen, so that a rerun finds them. They are computed in float32.
    """
    assert config.states is not None
    if config.state_embeddings is not None:
        return read_states(config.state_embeddings, config.states.names)
    output = f"{config.output.rstrip('/')}.{FOLDER}"
    shared = {name: getattr(config, name) for name in ("corpus", "model", "layer", "pooling", "token_budget", "actors")}
    more = {name: getattr(config, name) for name in ("cpus_per_actor", "gpus_per_actor", "threads", "tracking_uri")}
    logger.info("first the %s of each state: all cells are embedded into %s", config.state_statistic, output)
    embed_cells(EmbedConfig(output=output, **shared, **more))
    assert config.state_column is not None
    return pooled_by_state(Embeddings.open(output), config.state_column, config.states.names, config.state_statistic)


def pooled_by_state(
    embeddings: Embeddings, column: str, names: tuple[str, ...], statistic: str
) -> dict[str, NDArray[np.float32]]:
    """Return the mean or median embedding of the cells of each state; a mean takes constant memory."""
    total = {name: np.zeros(embeddings.manifest.width) for name in names}
    count = dict.fromkeys(names, 0)
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for part in embeddings.manifest.parts:
        table = read_rows(part.uri_in(embeddings.uri), 0, part.rows, [column, schema.EMBEDDING])
        matrix_nd = table[schema.EMBEDDING].combine_chunks().flatten().to_numpy().reshape(-1, embeddings.manifest.width)
        labels = table[column].cast("string").to_numpy(zero_copy_only=False)
        for name in names:
            own_nd = matrix_nd[labels == name]
            count[name] += len(own_nd)
            if statistic == "mean":
                total[name] += own_nd.sum(axis=0, dtype=np.float64)
            else:
                kept[name].append(own_nd)
    if statistic == "mean":
        return {name: (total[name] / count[name]).astype(np.float32) for name in names}
    return {name: np.median(np.concatenate(kept[name]), axis=0).astype(np.float32) for name in names}


def read_states(
    uri: str, names: tuple[str, ...] | None, width: int | None = None, option: str = "--state-embeddings"
) -> dict[str, NDArray[np.float32]]:
    """Read given embeddings of states.

    Parameters
    ----------
    uri
        Parquet with the columns `state` (text, each once) and `embedding` (lists of numbers).
    names
        Those to return; None: all.
    width
        Size of a hidden state of the model they must fit.
    option
        That names the file, for errors.

    Raises
    ------
    InputError
        The file is no such table, lacks a state, or an embedding is of another size or not finite.
    """
    rule, fix = f"{option} names a parquet with the columns state and embedding", "Correct the file."
    try:
        with storage.open_scattered(storage.absolute(uri)) as stream:
            table = pq.read_table(stream, columns=[STATE, schema.EMBEDDING])
    except (OSError, pa.ArrowException) as error:
        if storage.is_outage(error):
            raise
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error).split("\n", 1)[0]
        raise InputError(uri, rule, found, fix) from None
    rows = zip(table[STATE].to_pylist(), table[schema.EMBEDDING].to_pylist(), strict=True)
    known = {str(state): np.asarray(embedding, np.float32) for state, embedding in rows}
    names = tuple(known) if names is None else names
    if missing := [name for name in names if name not in known]:
        raise InputError(uri, "it must hold every state asked for", f"no {listing(missing)}; {listing(known)}", fix)
    for name in names:
        if known[name].shape != (width or len(known[name]),) or not np.isfinite(known[name]).all():
            found = f"{known[name].size:,} for state {name!r}"
            raise InputError(uri, f"an embedding must have {width or 'some'} finite numbers", found, fix)
    return {name: known[name] for name in names}


def write_states(uri: str, states: Mapping[str, NDArray[np.float32]]) -> None:
    """Write embeddings of states as `read_states` reads them."""
    vectors = pa.array([embedding.tolist() for embedding in states.values()], pa.list_(pa.float32()))
    with storage.atomic_file(storage.absolute(uri)) as path:
        pq.write_table(pa.table({STATE: pa.array(list(states), pa.string()), schema.EMBEDDING: vectors}), path)
