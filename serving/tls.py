"""HTTPS: the certificate and key that Serve's proxies are given, looked at before anything starts."""

import ssl
from pathlib import Path

from cellray.errors import InputError


def tls_options(certificate: str | None, key: str | None) -> dict[str, str]:
    """Return what `http_options` of Serve need for HTTPS; empty for HTTP.

    Parameters
    ----------
    certificate, key
        PEM files: the certificate with those it was signed by, and its private key without a password.

    Raises
    ------
    InputError
        One is missing, is no such file, or they do not belong together.
    """
    if certificate is None and key is None:
        return {}
    if certificate is None or key is None:
        found = "tls_certificate alone" if key is None else "tls_key alone"
        raise InputError("tls_certificate, tls_key", "they go together", found, "Give both, or none for HTTP.")
    fix = "Give PEM files of one certificate (chain) and its private key without a password."
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InputError(
            "tls_certificate, tls_key", "they must be a certificate and its key", str(error), fix
        ) from None
    return {"ssl_certfile": str(Path(certificate).resolve()), "ssl_keyfile": str(Path(key).resolve())}


def _no_password() -> str:
    """Refuse, where OpenSSL would ask the terminal and wait for ever."""
    raise ValueError("the key needs a password")
