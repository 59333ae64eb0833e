"""What a run ran on: code version, Python, packages, devices. Never fails: what cannot be found out is left out."""

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import cellray

_SHAPING = ("ray", "torch", "transformers", "mlflow", "optuna", "peft", "numpy", "pyarrow", "scikit-learn")
_GIT_S = 10.0


def code_version(package: Path | None = None) -> dict[str, str]:
    """Return tags that name the code: the package's version and, in a git checkout, the commit and whether it is dirty.

    Parameters
    ----------
    package
        Folder of the package, default: cellray's. A commit is named only if git keeps this very folder, not where it
        is installed somewhere below another project's checkout.
    """
    here = package or Path(cellray.__file__).parent
    tags = {"code.version": cellray.__version__}
    if not _git(here, "ls-files", "--error-unmatch", "__init__.py"):
        return tags
    if commit := _git(here, "rev-parse", "HEAD"):
        changes = _git(here, "status", "--porcelain", "--untracked-files=normal", "--", str(here))
        tags |= {"code.commit": commit, "code.dirty": str(changes != "").lower(), "mlflow.source.git.commit": commit}
    return tags


def environment_tags() -> dict[str, str]:
    """Return tags of Python, platform, the packages that shape results, and devices."""
    found = packages()
    versions = {f"version.{name}": found[name] for name in _SHAPING if name in found}
    return {
        "version.python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "devices": ", ".join(device_names()),
    }


def environment_text() -> str:
    """Return Python, platform, devices and every installed package, as `pip freeze` lists them."""
    head = [f"# python {sys.version.split()[0]} on {platform.platform()}", *(f"# {each}" for each in device_names())]
    return "\n".join([*head, *(f"{name}=={version}" for name, version in packages().items())]) + "\n"


def packages() -> dict[str, str]:
    """Return the installed packages and their versions, sorted by name."""
    found: dict[str, str] = {}
    for each in distributions():
        name = each.metadata["Name"] if each.metadata else None  # a half-removed package has none
        if name:
            found.setdefault(name, each.version)  # the first on the path is the one that is imported
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def device_names() -> list[str]:
    """Return this process's devices and, where Ray runs, the kinds of accelerators of its nodes."""
    names = [f"{_cpu()}, {os.cpu_count()} cores"]
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        names += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        kinds = ray.cluster_resources()
        names += [f"cluster: {k.removeprefix('accelerator_type:')}" for k in kinds if k.startswith("accelerator_type:")]
    return names


def _cpu() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None without git, outside a checkout and where git refuses."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    environment = {k: v for k, v in environment.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
