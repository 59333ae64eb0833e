"""The audit passes only where every dependency was audited."""

import json

from tests.release.audit import NOT_AUDITED, verdict

SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.0)"}


def told(*dependencies: dict[str, object]) -> tuple[int, str]:
    return verdict(json.dumps({"dependencies": dependencies, "fixes": []}), "")


def test_sound_dependencies_pass() -> None:
    assert told(SOUND) == (0, "1 of 1 dependencies audited, 0 vulnerabilities")


def test_vulnerabilities_fail_and_are_named() -> None:
    assert told(SOUND, BAD) == (1, "old 1.0: PYSEC-1\n2 of 2 dependencies audited, 1 vulnerabilities")


def test_what_the_database_does_not_know_fails() -> None:
    """`pip-audit` itself would exit with 0."""
    status, said = told(SOUND, UNKNOWN)
    assert status == NOT_AUDITED
    assert "1 of 2 dependencies audited" in said
    assert "NOT AUDITED: the database told nothing of 1: torch" in said
    assert told()[0] == NOT_AUDITED


def test_a_database_out_of_reach_fails() -> None:
    status, said = verdict("", "ERROR:pip_audit: Connection refused\n")
    assert status == NOT_AUDITED
    assert "could not be asked (ERROR:pip_audit: Connection refused)" in said
