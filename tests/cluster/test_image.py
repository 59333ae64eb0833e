"""The image's recipe, as far as it can be read without Docker: sources, stages, versions, what KubeRay needs."""

import re
import subprocess
import tomllib

import pytest

from tests.cluster.crd import CLUSTER
from tests.cluster.objects import readme
from tests.conftest import REPOSITORY

TEXT = re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text())
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
INSTRUCTIONS = [line.split(None, 1) for line in LINES]
IGNORED = (REPOSITORY / ".dockerignore").read_text().splitlines()


def rest(word: str) -> list[str]:
    """Return what stands behind an instruction, of all lines that begin with it."""
    return [after for name, after in INSTRUCTIONS if name == word]


def sources() -> list[str]:
    """Return what COPY takes from the checkout."""
    copies = [re.sub(r"--chmod=\S+ ", "", each).split() for each in rest("COPY") if "--from=" not in each]
    return sorted({source for each in copies for source in each[:-1]})


def test_every_instruction_is_one() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "CMD", "ENTRYPOINT"}
    assert {name for name, _ in INSTRUCTIONS} <= known


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    assert sources() == [
        "LICENSE",
        "README.md",
        "cluster/drain.sh",
        "constraints.txt",
        "jobs",
        "platform",
        "pyproject.toml",
        "serving",
    ]
    for source in sources():
        assert (REPOSITORY / source).exists()
        assert f"!{source}" in IGNORED
    assert IGNORED[1] == "*"  # nothing else does
    assert [line for line in IGNORED if line.startswith("!") and line[1:] not in sources()] == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_build_on_stages_that_come_before(device: str) -> None:
    known = {"${BASE}"}
    for each in rest("FROM"):
        base, name = each.split(" AS ")
        assert base.replace("${DEVICE}", device) in known
        known.add(name)
    for stage in re.findall(r"--from=(\S+)", TEXT):
        assert stage in known
    assert rest("FROM")[-1].endswith(" AS cellray")  # what is built when no target is named


def test_every_install_keeps_to_the_tested_versions() -> None:
    installs = re.findall(r"pip install (.*?)(?: && |$)", TEXT, re.MULTILINE)
    assert len(installs) == 4
    for each in installs:
        assert re.search(r"--constraint (/build/)?constraints\.txt", each)
    pinned = {line.split("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().split()}
    assert {"torch", "ray", "mlflow", "boto3"} <= pinned
    assert "psycopg2-binary==" in TEXT  # not among them: cellray itself does not need it
    assert re.search(r"\$R/cellray-mlflow:(\S+)", readme()).group(1) in TEXT  # type: ignore[union-attr]


def test_python_is_one_that_the_project_takes() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    [base] = [each.removeprefix("BASE=") for each in rest("ARG") if each.startswith("BASE=")]
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", base)
    assert version is not None
    assert project["requires-python"] == f">={version.group(1)}"


def test_nobody_is_root_and_nothing_is_secret() -> None:
    assert rest("USER") == ["1000:1000", "1000:1000"]
    last = {stage: TEXT.split(f" AS {stage}\n")[1].split("\nFROM")[0] for stage in ("mlflow", "cellray")}
    for text in last.values():
        assert text.index("\nUSER 1000:1000") > text.rindex("\nWORKDIR")
    names = re.findall(r"\b([A-Z][A-Z0-9_]+)=", " ".join(rest("ENV") + rest("ARG")))
    assert not [each for each in names if re.search("TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY", each)]
    assert ":latest" not in TEXT


def test_what_kuberay_and_ray_up_call_is_installed() -> None:
    [packages] = [each for each in rest("RUN") if "wget" in each]
    assert {"ca-certificates", "openssh-client", "procps", "rsync", "wget"} <= set(packages.split())
    assert any(". boto3" in each for each in TEXT.splitlines())  # Ray's provider for AWS imports it on the head
    assert "/opt/venv/bin:$PATH" in " ".join(rest("ENV"))
    assert "/etc/profile.d/cellray.sh" in TEXT  # for login shells, which begin with a PATH of their own
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(each.startswith("ray[") and "serve" in each for each in extras)  # brings dashboard and autoscaler


def test_the_script_that_drains_is_shell_and_speaks_to_ray_as_ray_wants() -> None:
    script = CLUSTER / "drain.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    from ray.scripts.scripts import drain_node

    options = {option for each in drain_node.params for option in each.opts}
    called = script.read_text().split("ray drain-node", 1)[1].split("||")[0]
    assert set(re.findall(r"--[a-z-]+", called)) <= options
    [reason] = [each for each in drain_node.params if each.name == "reason"]
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
    assert "DRAIN_NODE_REASON_PREEMPTION" in called
