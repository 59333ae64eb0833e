"""Without keys: this machine and nobody else, not even through a browser on this machine."""

import pytest
from pydantic import ValidationError

from serving.access import AccessError, OpenGate, make_gate
from serving.config import ServingConfig


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.8.0.1"])
@pytest.mark.parametrize("site", [{}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}])
def test_this_machine_is_let_in(host: str, site: dict[str, str]) -> None:
    assert OpenGate().admit({"host": host, **site}, ["admin"], "127.0.0.1").name == "anyone"


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({"host": "127.0.0.1:8000"}, "192.0.2.7"),
        ({"host": "127.0.0.1:8000"}, ""),
        ({"host": "cells.example.org:8000"}, "127.0.0.1"),  # a name that was made to point here
        ({"host": "127.0.0.1.example.org"}, "127.0.0.1"),
        ({"host": "localhost@example.org"}, "127.0.0.1"),
        ({"host": "[::1"}, "127.0.0.1"),
        ({}, "127.0.0.1"),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, "127.0.0.1"),
        ({"host": "localhost", "sec-fetch-site": "same-site"}, "127.0.0.1"),
    ],
)
def test_others_are_not(headers: dict[str, str], client: str) -> None:
    with pytest.raises(AccessError) as caught:
        OpenGate().admit(headers, ["embed"], client)
    assert caught.value.status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "serving.example.org", ""])  # noqa: S104
def test_no_keys_and_another_address_than_loopback_do_not_go_together(host: str) -> None:
    options = {"models": {"default": {"uri": "somewhere"}}, "access": {"auth": "none"}, "host": host}
    with pytest.raises(ValidationError, match="listens on loopback only"):
        ServingConfig.model_validate(options)


def test_keys_are_what_is_asked_for_unless_said_otherwise() -> None:
    config = ServingConfig.model_validate({"models": {"default": {"uri": "somewhere"}}})
    assert config.access.auth == "keys"
    with pytest.raises(ValidationError, match="auth"):
        ServingConfig.model_validate({"models": {"default": {"uri": "somewhere"}}, "access": {"auth": None}})


def test_the_open_server_needs_no_keys() -> None:
    options = {"models": {"default": {"uri": "somewhere"}}, "access": {"auth": "none"}}
    assert isinstance(make_gate(ServingConfig.model_validate(options)), OpenGate)
