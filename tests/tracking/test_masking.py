"""No secret is recorded: nasty examples, and made-up ones."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from pydantic import BaseModel, SecretStr

from cellray.errors import InputError
from cellray.tracking import start_run
from cellray.tracking.masking import is_secret_name, mask, mask_document, mask_text
from cellray.tracking.patient import PatientTracker
from cellray.tracking.record import Lineage, record_origin

TEXTS = {
    "postgresql://user:hunter2@db:5432/mlflow": "postgresql://***@db:5432/mlflow",
    "mysql+pymysql://root:hun?ter2#@db/x": "mysql+pymysql://***@db/x",
    "http://user:hun/ter2@host:5000/x": "http://***@host:5000/x",
    "http://user:hunt@er2@host": "http://***@host",
    "see http://a:hunter2@h and s3://b:hunter2@bucket/x": "see http://***@h and s3://***@bucket/x",
    "https://hunter2@github.com/x": "https://***@github.com/x",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2&versionId=3": (
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=***&X-Amz-Signature=***&versionId=3"
    ),
    "https://h/x?%74oken=hunter2": "https://h/x?%74oken=***",
    "https://h/x?hunter2": "https://h/x?***",
    "https://h/cb#access_token=hunter2": "https://h/cb#access_token=***",
    "postgresql://db/x?password=hunter2&sslmode=require": "postgresql://db/x?password=***&sslmode=require",
    "Driver=ODBC;Server=db;Uid=me;Pwd=hunter2;": "Driver=ODBC;Server=db;Uid=me;Pwd=***;",
    "AccountName=a;AccountKey=hunter2==;EndpointSuffix=x": "AccountName=a;AccountKey=***;EndpointSuffix=x",
    "export AWS_SECRET_ACCESS_KEY=hunter2": "export AWS_SECRET_ACCESS_KEY=***",
    "--api-key hunter2 --password=hunter2 --hf-token 'hun ter2' x": "--api-key *** --password=*** --hf-token '***' x",
    "Authorization: Bearer hunter2hunter2": "Authorization: ***",
    "curl -H 'X: bearer hunter2hunter2'": "curl -H 'X: ***'",
    "{'db_password': 'hun ter2', 'n': 3}": "{'db_password': '***', 'n': 3}",
    "key AKIAABCDEFGHIJKLMNOP.": "key ***.",
    "hf_abcdefghijklmnopqrstuvwx": "***",
    "ghp_abcdefghijklmnopqrst0123": "***",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl": "***",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----": "***",
}
HARMLESS = [
    "s3://bucket/models@v1/sample#3",
    "sqlite:////tmp/mlflow.db",
    "http://127.0.0.1:5000/#/experiments/1",
    "/home/me@lab/cells.h5ad",
    "token_budget=2048, 512 tokens: 12 padded",
    "models:/geneformer@champion",
    "a basic embedding of cells",
    "2026-01-01 12:00:00",
    "s3://bucket/key?versionId=3",
]


@pytest.mark.parametrize(("text", "shown"), TEXTS.items(), ids=range(len(TEXTS)))
def test_secrets_in_text(text: str, shown: str) -> None:
    assert mask_text(text) == shown
    assert mask_text(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert mask_text(text) == text


def test_names_of_secrets() -> None:
    secret = "password dbPassword HF_TOKEN hf-token token apiKey api_key AWS_SECRET_ACCESS_KEY awsAccessKeyId sas_token"  # noqa: S105
    secret += " X-Amz-Signature client_secret session_token credentials passphrase private_key auth Authorization"
    assert [name for name in secret.split() if not is_secret_name(name)] == []
    open_ = (
        "token_budget tokens special_tokens pad_token cls_token max_token author key label_key keys secretary passes"
    )
    open_ += " tracking_uri seed tokens_per_step tokenizer"
    assert [name for name in open_.split() if is_secret_name(name)] == []


SECRET = "hUnT3r2zq"  # noqa: S105
safe = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
password = st.text("abc/@:?#%=&+!$,;~*()[]|._-", max_size=6).map(lambda tail: SECRET + tail.replace("'", ""))


@given(scheme=st.sampled_from(["http", "postgresql+psycopg2", "s3", "ftp"]), user=safe, secret=password, host=safe)
def test_no_password_of_a_uri_is_left(scheme: str, user: str, secret: str, host: str) -> None:
    uri = f"{scheme}://{user}:{secret}@{host}/x"
    for text in (uri, f"cannot reach {uri!r}, try again", json.dumps({"uri": uri})):
        assert SECRET not in mask_text(text)
        assert f"{host}/x" in mask_text(text)


values = st.recursive(
    st.integers() | st.booleans() | st.none() | st.just(f"http://u:{SECRET}@h") | safe,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(safe, inner, max_size=3),
    max_leaves=8,
)


@given(values, st.sampled_from(["password", "hf_token", "credentials"]), st.just(SECRET) | st.just({"any": [SECRET]}))
def test_no_secret_of_a_configuration_is_left(value: object, name: str, secret: object) -> None:
    config = {"inner": [{"deep": {name: secret, "value": value}}], "value": value}
    shown = mask(config)
    assert SECRET not in json.dumps(shown)
    assert shown["inner"][0]["deep"][name] == "***"
    assert mask(shown) == shown
    assert json.loads(mask_document(json.dumps(config), "config.json")) == shown


class Options(BaseModel):
    """A configuration with everything it should not have."""

    corpus: str = f"https://u:{SECRET}@h/corpus?X-Amz-Signature={SECRET}"
    hf_token: str = SECRET
    wrapped: SecretStr = SecretStr(SECRET)
    sources: tuple[str, ...] = ("s3://open/a@b", f"s3://key:{SECRET}@closed/b")
    space: dict[str, object] = {"learning_rate": {"low": 1e-5, "log": True}, "password": {"x": SECRET}}


def test_no_secret_reaches_the_store(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = f"http://u:{SECRET}@h"
    tracker = start_run(store, "tests", "run", {"uri": bad, "api_key": SECRET}, {"from": bad, "db_password": SECRET})
    assert isinstance(tracker, PatientTracker)
    record_origin(tracker, Options(), Lineage(corpus=bad, parent_model=bad))
    (tmp_path / "log.txt").write_text(f"--password={SECRET}")
    (tmp_path / "made.json").write_text(json.dumps({"token": SECRET, "uri": bad, "rows": 3}))
    tracker.log_file(tmp_path / "log.txt")
    tracker.log_file(tmp_path / "made.json", "files")
    tracker.log_text(f"fetched {bad}", "notes/a.txt")
    tracker.log_table({"source": [bad], "secret": [SECRET]}, "t.csv")
    tracker.set_tags({"model": bad})
    run = MlflowClient(store).get_run(tracker.run.run_id)
    assert run.data.params["space.learning_rate.low"] == "1e-05"
    assert run.data.params["space.password"] == run.data.params["hf_token"] == "***"
    assert run.data.params["sources"] == "['s3://open/a@b', 's3://***@closed/b']"
    assert run.data.tags["corpus"] == "http://***@h"
    kept = Path(download_artifacts(run_id=tracker.run.run_id, tracking_uri=store, dst_path=str(tmp_path / "kept")))
    texts = {str(path.relative_to(kept)): path.read_text() for path in kept.rglob("*") if path.is_file()}
    assert set(texts) == {
        "config.json", "environment.txt", "log.txt", "files/made.json", "notes/a.txt", "t.csv"
    }  # fmt: skip
    assert json.loads(texts["files/made.json"]) == {"token": "***", "uri": "http://***@h", "rows": 3}
    assert json.loads(texts["config.json"])["space"]["learning_rate"] == {"low": 1e-5, "log": True}
    everything = json.dumps([run.to_dictionary(), texts]) + caplog.text
    assert SECRET not in everything
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()
    assert tracker.lost == 0


def test_an_error_shows_no_password() -> None:
    with pytest.raises(InputError, match="the tracking server must answer") as raised:
        start_run(f"http://user:{SECRET}@127.0.0.1:9/?token={SECRET}", "tests", "run", {}, {})
    assert SECRET not in str(raised.value)
