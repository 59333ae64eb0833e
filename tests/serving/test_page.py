"""The page: safe to open, small, asks what there is; and, where there is a browser, what a person does with it.

The browser's part needs Chromium on the PATH, node, and playwright-core where node finds it (`npm install
--prefix build playwright-core`). Without them it is skipped and says so.
"""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anndata
import httpx2
import numpy as np
import pandas as pd
import pytest

from serving.page import FOLDER, INDEX, page_files
from tests.conftest import GENES, REPOSITORY
from tests.infer.tiny import cells_of
from tests.serving.conftest import Served, json_cells

OWN = {name: file for name, file in page_files().items() if not name.startswith("vendor/")}
TEXTS = {name: file.body.decode() for name, file in OWN.items()}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def test_the_page_is_small_and_says_whose_the_rest_is() -> None:
    assert sum(len(file.body) for file in OWN.values()) < 150_000
    vendored = [name for name in page_files() if name.startswith("vendor/") and name.endswith(".js")]
    licences = (FOLDER / "vendor" / "LICENSE.txt").read_text()
    assert vendored
    assert all(Path(name).name in licences for name in vendored)


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    index = TEXTS[INDEX]
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", index)
    for name, text in TEXTS.items():
        urls = [url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text) if "www.w3.org" not in url]
        assert not [url for url in urls if not url.startswith("// ")], name
        assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|document\.write|new Function", text), name
        assert "localStorage" not in text


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r'(?:src|href)="(?:page/)?([\w./-]+\.\w+)"', TEXTS[INDEX])) - {"openapi.json"}
    for text in TEXTS.values():
        named |= {name.removeprefix("./") for name in re.findall(r'from "(\./[\w.-]+)"', text)}
        named |= set(re.findall(r'importScripts\("([\w./-]+)"\)', text))
        named |= set(re.findall(r'new Worker\("page/([\w./-]+)"\)', text))
    assert {"app.js", "style.css", "layout.worker.js", "vendor/umap-js.min.js"} <= named
    assert named <= set(page_files())


def test_every_control_has_a_name() -> None:
    """Each input and select stands in a label, or has one."""
    index = TEXTS[INDEX]
    inside = "".join(re.findall(r"<label.*?</label>", index, re.DOTALL))
    for tag in re.findall(r"<(?:input|select)[^>]*>", index):
        name = re.search(r'id="([\w-]+)"', tag)
        assert tag in inside or (name and f'for="{name[1]}"' in index), tag
    assert set(re.findall(r'\$\("([\w-]+)"\)', TEXTS["app.js"])) <= set(re.findall(r'id="([\w-]+)"', index))


def test_the_page_is_served_with_its_policy(served: Served) -> None:
    with served.client() as client:
        for name, file in page_files().items():
            answer = client.get("/" if name == INDEX else f"/page/{name}")
            assert answer.status_code == 200
            assert answer.content == file.body
            assert answer.headers["content-type"] == file.media_type
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = client.get(str(answer.url), headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for wrong in ("__init__.py", "../routes.py", "..%2froutes.py", "%2e%2e/config.py", "nothing.js"):
            assert client.get(f"/page/{wrong}").status_code == 404


def test_what_the_page_asks_exists(served: Served) -> None:
    with served.client() as client:
        paths = set(client.get("/openapi.json").json()["paths"])
    asked = {name for text in TEXTS.values() for name in re.findall(r"[\"'`](v1/[a-z]+)", text)}
    assert {"v1/models", "v1/cells", "v1/example", "v1/embeddings", "v1/perturbations", "v1/jobs"} == asked
    assert {f"/{name}" for name in asked} <= paths


@pytest.fixture(scope="module")
def uploaded() -> anndata.AnnData:
    """Sixty cells whose genes have names for people."""
    adata = cells_of(cells=60)
    adata.var["gene_name"] = [f"NAME{i}" for i in range(adata.n_vars)]
    return adata


@pytest.fixture(scope="module")
def used(served: Served, uploaded: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the browser saw, with the folder of what it downloaded."""
    folder = tmp_path_factory.mktemp("page")
    uploaded.write_h5ad(folder / "cells.h5ad")
    cells_of(cells=65).write_h5ad(folder / "many.h5ad")
    (folder / "broken.h5ad").write_bytes((folder / "cells.h5ad").read_bytes()[:5000])
    given = {
        "url": served.url,
        "chromium": _browser(),
        "cells": str(folder / "cells.h5ad"),
        "broken": str(folder / "broken.h5ad"),
        "many": str(folder / "many.h5ad"),
        "folder": str(folder),
        "genes": [gene for gene in GENES[:30] if gene not in (GENES[3], GENES[4])],
    }
    command = ["node", str(Path(__file__).with_name("page_driver.js")), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=_node(), timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "folder": folder}


def _browser() -> str:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on the PATH ({', '.join(_BROWSERS)})")
    look = ["node", "-e", "require.resolve('playwright-core')"]
    if shutil.which("node") is None or subprocess.run(look, env=_node(), capture_output=True, check=False).returncode:
        pytest.skip("node finds no playwright-core: npm install --prefix build playwright-core")
    return found


def _node() -> dict[str, str]:
    modules = [str(REPOSITORY / "build" / "node_modules"), os.environ.get("NODE_PATH", "")]
    return {**os.environ, "NODE_PATH": os.pathsep.join(filter(None, modules))}


def test_a_browser_sees_no_error_and_asks_nobody_else(used: dict[str, Any]) -> None:
    assert used["problems"] == []
    assert used["strangers"] == []
    assert used["keys"] == ["Bearer secret-key"]
    assert used["stored"] == [["secret-key"], 0, ""]


def test_the_example_is_drawn_and_perturbed(used: dict[str, Any]) -> None:
    seen = used["example"]
    assert seen["about"].startswith("Made-up cells of three groups")
    assert seen["legend"] == ["group A", "group B", "group C"]
    assert seen["scale"] == 1
    assert seen["picked"] == "40 cells picked"
    assert seen["bars"] == 25
    assert used["overflow"] <= 0


def test_cells_are_picked_by_mouse_and_by_keyboard(used: dict[str, Any]) -> None:
    seen = used["upload"]
    assert seen["columns"] == ["state", "donor", ""]
    assert sorted(seen["legend"]) == ["other", "sick", "well"]
    assert seen["lasso"] == seen["box"] == "60 cells picked"
    assert seen["none"] == ["No cell picked", True]
    assert seen["keyboard"] == "1 cell picked"
    assert re.fullmatch(r"cell\d+ · (sick|well|other)", seen["tip"])


def test_the_csv_is_what_the_server_answers(used: dict[str, Any], served: Served, uploaded: anndata.AnnData) -> None:
    """Genes that are typed by name, the shifts of all cells, and their means."""
    assert used["chips"] == ["Remove NAME3", "Remove NAME4"]
    assert "NAME3" in used["suggested"]
    ask = json_cells(uploaded) | {"perturb": [GENES[3], GENES[4]], "goal": "well", "top": None}
    with httpx2.Client(base_url=served.url, timeout=60) as client:
        wanted = pd.DataFrame(client.post("/v1/perturbations", json=ask).json()["table"])
    rows = pd.read_csv(used["folder"] / "rows.csv")
    assert rows.columns.tolist() == wanted.columns.tolist()
    by = ["cell_id", "perturbation"]
    rows, wanted = (each.sort_values(by, ignore_index=True) for each in (rows, wanted))
    assert rows[by].to_numpy().tolist() == wanted[by].to_numpy().tolist()
    np.testing.assert_allclose(rows["shift:well"], wanted["shift:well"], atol=5e-6)
    means = wanted.groupby("genes")["shift:well"].mean()
    with (used["folder"] / "genes.csv").open(newline="") as stream:
        genes = list(csv.DictReader(stream))
    assert [row["label"] for row in sorted(genes, key=lambda row: row["genes"])] == ["NAME3", "NAME4"]
    for row in genes:
        assert float(row["mean shift:well"]) == pytest.approx(means[row["genes"]], abs=5e-6)
        assert int(row["cells"]) == (wanted["genes"] == row["genes"]).sum()
    assert used["sorted"] == ["NAME3", "NAME4"]


def test_long_questions_are_jobs_that_can_be_cancelled(used: dict[str, Any]) -> None:
    assert used["job"].startswith("overexpress, 60 cells, 1740 perturbations.")
    assert len(used["dropped"]) == 1  # the result was fetched, nobody needs it any more
    assert len(used["deletes"]) == 2
    assert used["hidden"]


def test_errors_are_told_in_words(used: dict[str, Any]) -> None:
    assert "the uploaded file" in used["error"].lower()
    assert "{" not in used["error"]
    assert used["many"].startswith("64 of the 65 cells of the file, drawn at random. 64 cells;")
    assert used["refused"] == "This server asks for an access key. Type it at the top right."
