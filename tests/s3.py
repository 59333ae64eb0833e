"""A real S3 server on loopback, for tests of the protocol."""

from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from cellray.s3 import PatientS3FileSystem


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server that lives as long as the test session."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the usual environment variables by which a server is reached."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket, reachable through environment variables, here and on the shared Ray's workers."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("cells")
    yield "s3://cells"
    fs.rm("cells", recursive=True)
    fsspec.filesystem("s3").clear_instance_cache()
    forget_connections()


def forget_connections() -> None:
    """Close connections, forget listings and addresses: the next use reads the environment anew."""
    from zarr.core.sync import sync

    for fs in PatientS3FileSystem._cache.values():
        if fs.asynchronous and fs._s3 is not None:  # zarr's; s3fs closes the others by itself
            sync(fs._s3creator.__aexit__(None, None, None))
    PatientS3FileSystem.clear_instance_cache()
