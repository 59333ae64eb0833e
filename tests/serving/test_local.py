"""The HTTP side by itself: what its endpoints refuse and tell, whatever model stands behind it."""

import asyncio
from typing import Any

import httpx2
import numpy as np

from cellray.api import wire
from tests.serving.local import Local


def table(genes: int) -> wire.CellTable:
    """Two cells that share no gene, with half of them each."""
    half = genes // 2
    columns, indptr = np.arange(2 * half, dtype=np.int32), np.array([0, half, 2 * half])
    return wire.CellTable(["a", "b"], [f"G{i}" for i in range(genes)], indptr, columns, np.ones(2 * half))


def as_json(cells: wire.CellTable, *, shared: bool) -> dict[str, Any]:
    half = len(cells.counts) // 2
    if shared:
        rows = [{"id": str(i), "indices": list(range(i * half, (i + 1) * half)), "counts": [1] * half} for i in (0, 1)]
        return {"model": "m", "genes": list(cells.genes), "cells": rows}
    own = (list(cells.genes[:half]), list(cells.genes[half:]))
    return {"model": "m", "cells": [{"id": str(i), "genes": own[i], "counts": [1] * half} for i in (0, 1)]}


def h5ad(cells: wire.CellTable, folder: Any) -> bytes:  # noqa: ANN401  # pytest's path
    import anndata
    import pandas as pd
    from scipy import sparse

    x_ng = sparse.csr_matrix((cells.counts, cells.columns, cells.indptr), (2, len(cells.genes)))
    obs, var = pd.DataFrame(index=list(cells.ids)), pd.DataFrame(index=list(cells.genes))
    anndata.AnnData(x_ng, obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    return bytes((folder / "cells.h5ad").read_bytes())


def test_names_of_genes_are_limited_in_each_form(tmp_path: Any) -> None:  # noqa: ANN401
    """Four names, in whatever way they come; with three all is well."""
    small, large = table(2), table(4)
    packed = {name: wire.pack_cells(each, {"model": "m"}) for name, each in (("small", small), ("large", large))}

    async def ask() -> None:
        async with Local({"genes_per_request": 3}) as client:
            post, binary, file = client.post, {"content-type": wire.CELLS}, {"content-type": wire.H5AD}
            url, body = "/v1/embeddings", h5ad(large, tmp_path)
            refused = [
                await post(url, json=as_json(large, shared=False)),
                await post(url, json=as_json(large, shared=True)),
                await post(url, content=packed["large"], headers=binary),
                await post(f"{url}?model=m", content=body, headers=file),
                await post("/v1/cells", content=body, headers=file),
            ]
            for answer in refused:
                error = answer.json()["error"]
                assert (answer.status_code, error["limit"]) == (422, {"name": "genes_per_request", "value": 3.0}), error
                assert "found 4" in error["message"]
            assert (await post(url, json=as_json(small, shared=False))).status_code == 200
            assert (await post(url, content=packed["small"], headers=binary)).status_code == 200

    asyncio.run(ask())


def test_models_tell_all_limits_that_clients_need() -> None:
    async def ask() -> dict[str, float]:
        async with Local({"genes_per_request": 3}, {"max_queued_cells": 5}) as client:
            [model] = (await client.get("/v1/models")).json()["models"]
            return dict(model["limits"])

    assert asyncio.run(ask()) == {
        "body_mb": 64,
        "json_mb": 16,
        "response_mb": 256,
        "cells_per_request": 1024,
        "genes_per_cell": 65_536,
        "genes_per_request": 3,
        "counts_per_request": 8_000_000,
        "max_queued_cells": 5,
        "perturbation_tokens": 200_000,
        "job_tokens": 2_000_000_000,
        "jobs_per_key": 16,
        "job_ttl_s": 3600,
        "request_timeout_s": 120,
    }


def test_a_wrong_parameter_is_an_error_like_any_other() -> None:
    async def ask() -> httpx2.Response:
        async with Local() as client:
            return await client.post("/v1/cells?draw=-1", content=b"", headers={"content-type": wire.H5AD})

    answer = asyncio.run(ask())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_request")
    assert error["message"] == "draw: Input should be greater than or equal to 0"
