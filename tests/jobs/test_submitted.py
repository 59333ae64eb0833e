"""Jobs submitted to a cluster: they run unchanged, need its token, and give the same bytes when a node is lost."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cellray import storage
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.infer.screen import ScreenConfig, screen
from cellray.vocabulary import GeneVocabulary
from tests.infer.tiny import cells_of, corpus_in, model_in
from tests.local_cluster import LocalCluster

CELLS = 24

pytestmark = [pytest.mark.own_ray, pytest.mark.timeout(300)]


def content(folder: Path) -> dict[str, str]:
    """Return path and digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): storage.sha256_file(str(path)) for path in files}


def test_submitted_jobs_need_a_token_outlive_a_node_and_say_why_they_fail(
    vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary, cells_of(cells=CELLS)), model_in(tmp_path, vocabulary)
    lossy, quiet = tmp_path / "lossy", tmp_path / "quiet"
    options = ("--cells-per-part", "1", "--threads", "1", "--actors", "2,2", "--effects")
    names = ("--corpus", corpus.uri, "--model", model, "--output", str(lossy))
    with LocalCluster(tmp_path, nodes=2) as cluster:
        refused = cluster.ray("job", "list", "--address", cluster.dashboard, token=False)
        assert refused.returncode != 0
        assert "oken" in refused.stdout + refused.stderr
        job = cluster.submit("python", "-m", "jobs.perturb", *names, *options)
        while len(list(lossy.rglob("shards/[0-9a-f]*.parquet"))) < CELLS // 2:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.01)
        cluster.kill_node()
        lost_at = len(list(lossy.rglob("shards/[0-9a-f]*.parquet")))
        told, _ = job.communicate()
        failing = cluster.submit("python", "-m", "jobs.inspect_corpus", str(tmp_path / "nothing"))
        why, _ = failing.communicate()
    assert job.returncode == 0, told[-3000:]
    assert lost_at < 2 * CELLS
    assert failing.returncode == 1
    assert f"{tmp_path}/nothing: " in why
    config = ScreenConfig(corpus=corpus.uri, model=model, output=str(quiet), effects=True, cells_per_part=1, threads=1)
    screen(config.model_copy(update={"actors": (0, 0)}))
    assert content(lossy) == content(quiet)


@pytest.mark.chaos
def test_submitted_tokenization_of_many_files(
    vocabulary: GeneVocabulary, tmp_path: Path, make_h5ad: Callable[..., Path], ray_session: None
) -> None:
    files = [make_h5ad(f"cells{i}.h5ad", cells=50, seed=i) for i in range(40)]
    vocabulary.save(str(tmp_path / "vocabulary.json"))
    lossy, quiet = tmp_path / "lossy", tmp_path / "quiet"
    options = ("--source", ",".join(map(str, files)), "--vocabulary", str(tmp_path / "vocabulary.json"))
    with LocalCluster(tmp_path, nodes=2) as cluster:
        job = cluster.submit("python", "-m", "jobs.tokenize_corpus", *options, "--output", str(lossy))
        while len(list(lossy.rglob("shards/*.parquet"))) < 4:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.01)
        cluster.kill_node()
        told, _ = job.communicate()
    assert job.returncode == 0, told[-3000:]
    tokenize_corpus(TokenizeConfig(source=tuple(map(str, files)), vocabulary=options[-1], output=str(quiet)))
    assert content(lossy) == content(quiet)
