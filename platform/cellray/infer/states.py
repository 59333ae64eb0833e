"""Embeddings of cell states: the exact mean or median over a state's cells, which the screen embeds for it."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig

FOLDER = "states"
"""Folder of the embeddings, below the directory of a screen."""


def state_embeddings(config: "ScreenConfig", corpus: Corpus) -> dict[str, NDArray[np.float32]]:
    """Embed the corpus as the screen does and return each state's embedding. Shape (hidden,).

    The embeddings stay beside the screen, so that a rerun finds them. They are computed in float32.
    """
    assert config.states is not None
    output = f"{config.output.rstrip('/')}.{FOLDER}"
    shared = {name: getattr(config, name) for name in ("corpus", "model", "layer", "pooling", "token_budget", "actors")}
    more = {name: getattr(config, name) for name in ("cpus_per_actor", "gpus_per_actor", "threads", "tracking_uri")}
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
