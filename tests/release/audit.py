"""Asks for known vulnerabilities of the pinned dependencies: `python tests/release/audit.py PIP_AUDIT REQUIREMENTS`.

`pip-audit` alone answers "no known vulnerabilities" when the database knows none of the packages, as behind a mirror
that serves packages but no advisories. Here that is a failure: what was not audited is no result.
"""

import json
import subprocess
import sys
from typing import Any

OPTIONS = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "30")
NOT_AUDITED = 3


def verdict(output: str, errors: str) -> tuple[int, str]:
    """Return the exit status and what to say, from what pip-audit printed."""
    try:
        found: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["nothing was said"])[-1]
        return NOT_AUDITED, f"NOT AUDITED: the database of vulnerabilities could not be asked ({last})"
    bad = [f"{each['name']} {each['version']}: {flaw['id']}" for each in found for flaw in each.get("vulns", ())]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    lines = [*bad, f"{len(found) - len(skipped)} of {len(found)} dependencies audited, {len(bad)} vulnerabilities"]
    if skipped or not found:
        lines.append(f"NOT AUDITED: the database told nothing of {len(skipped)}: {', '.join(skipped[:8])}, ...")
    return (1 if bad else NOT_AUDITED if skipped or not found else 0), "\n".join(lines)


def main(pip_audit: str, requirements: str) -> int:
    """Run it and say what came out."""
    command = [pip_audit, "--requirement", requirements, *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # its status does not tell enough
    status, said = verdict(done.stdout, done.stderr)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
