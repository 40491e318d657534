"""Install the locked packages into .venv; `make install` runs it.

pip installs uv, at the version and hashes of requirements-uv.lock, and uv installs everything else. Does
nothing if .venv/.installed matches; it is written last, and so the next install repairs an interrupted one.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".installed"
UV_LOCK = ROOT / "requirements-uv.lock"
LOCKS = {
    "runtime": [ROOT / "requirements.lock"],
    "parquet": [ROOT / "requirements.lock", ROOT / "requirements-parquet.lock"],
    "dev": [ROOT / f"requirements{name}.lock" for name in ("", "-parquet", "-dev")],
}
SUPPORTED = ((3, 10), (3, 11))
COMPILED = (
    "tensorflow", "keras", "tensorflow_estimator", "prefect", "sqlalchemy", "numpy", "pydantic", "grpc",
    "google", "alembic", "rich", "fastapi", "docker", "beartype", "redis", "requests", "griffe", "cyclopts",
    "jinja2", "absl", "httpx", "starlette", "urllib3", "click", "websockets", "h2", "dateutil", "yaml",
)  # fmt: skip
"""The packages that every run imports and that take longest to compile: uv, unlike pip, compiles nothing.

Elsewhere the first import does, unless Python may not write (PYTHONDONTWRITEBYTECODE, which many container
images set): then each of a run's processes would compile TensorFlow, 8 s each time.
"""

UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
"""pip's settings, and the variables that uv reads them from."""


def main() -> int:
    """Install a group of packages unless it is installed already; return the exit code."""
    parser = argparse.ArgumentParser(description="Install the locked packages into .venv.")
    parser.add_argument("group", choices=LOCKS, nargs="?", default="runtime")
    parser.add_argument(
        "--python", action="store_true", help="remake .venv unless it has this Python's version"
    )
    parser.add_argument(
        "--check", action="store_true", help="install nothing; exit code 1 if something is to do"
    )
    options = parser.parse_args()
    if installed(options.group, same_python=options.python):
        return 0
    if options.check:
        return 1
    began = time.monotonic()
    try:
        make_venv(same_python=options.python)
        STAMP.unlink(missing_ok=True)
        install(options.group)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd[:3]))
        sys.stderr.write(f"install: `{command} …` ended with exit code {error.returncode}; see above\n")
        return 1
    say(f"installed in {time.monotonic() - began:.0f} s")
    return 0


def installed(group: str, *, same_python: bool) -> bool:
    """Return whether the group, or a larger one, is installed for this checkout and these locks."""
    try:
        found = STAMP.read_text()
    except OSError:
        return False
    if same_python and not same_version():
        return False
    return PYTHON.exists() and found in [
        stamp(each) for each in LOCKS if set(LOCKS[each]) >= set(LOCKS[group])
    ]


def stamp(group: str) -> str:
    """Return what .venv/.installed holds after an install: a moved .venv or another Python does not match."""
    inputs = [Path(__file__), ROOT / "pyproject.toml", UV_LOCK, *LOCKS[group]]
    digests = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in inputs]
    return f"{group}\n{VENV.resolve()}\n{PYTHON.resolve()}\n{''.join(digests)}"


def same_version() -> bool:
    """Return whether .venv has the minor version of the Python that runs this."""
    return (VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}").exists()


def make_venv(*, same_python: bool) -> None:
    """Make .venv, unless there is one with a supported Python that starts."""
    if PYTHON.exists() and (same_version() or not same_python):
        probe = f"import sys; sys.exit(sys.version_info[:2] not in {SUPPORTED})"
        if subprocess.run([PYTHON, "-c", probe], check=False).returncode == 0:
            return
    if sys.version_info[:2] not in SUPPORTED:
        sys.exit(
            f"install: Slipway needs Python 3.10 or 3.11 (the versions that TensorFlow 2.15 supports), found "
            f"{sys.version.split()[0]}. Run `make install PYTHON=/path/to/python3.11`."
        )
    say(f"making .venv with Python {sys.version.split()[0]} ({sys.executable})")
    # Cleared, so that packages of another Python are gone; --clear keeps a link to a folder elsewhere.
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)


def install(group: str) -> None:
    """Install uv, then the group's locks and the checkout itself."""
    for name in forget_incomplete(site_packages()):
        say(f"repairing {name}: it was left incomplete")
    if not list(site_packages().glob("pip-*.dist-info")):
        subprocess.run([PYTHON, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
    if uv_version() is None:
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--requirement", UV_LOCK], check=True)
    options, environment = uv_settings(pip_settings(), os.environ)
    uv = [VENV / "bin" / "uv", "pip", "install", "--python", PYTHON]
    if not sys.stderr.isatty():  # a terminal gets uv's progress bars
        uv.append("--quiet")
    names = " and ".join(path.name for path in LOCKS[group])
    total = len(
        {line for path in LOCKS[group] for line in path.read_text().splitlines() if line[:1].isalnum()}
    )
    say(f"installing {total} packages of {names}: about half a minute with two cores, less from uv's cache")
    locks = [part for path in LOCKS[group] for part in ("--requirement", path)]
    environment = {**environment, **cache_settings(environment)}
    # Locks are complete, but for what .ci/overrides-dev.txt leaves out.
    subprocess.run([*uv, "--require-hashes", "--no-deps", *options, *locks], check=True, env=environment)
    editable = [*uv, "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", ROOT]
    subprocess.run(editable, check=True, env=environment)
    shutil.rmtree(VENV / ".uv-cache", ignore_errors=True)
    compile_packages()
    STAMP.write_text(stamp(group))


def compile_packages() -> None:
    """Write the bytecode of COMPILED, on all cores."""
    folders = [folder for name in COMPILED if (folder := site_packages() / name).is_dir()]
    # Some files are templates and do not compile: that is no error.
    command = [PYTHON, "-m", "compileall", "-qq", "-j", "0", "-x", r"/tests?/|/plugins/", *folders]
    subprocess.run(command, check=False)


def site_packages() -> Path:
    """Return the folder that packages are installed in."""
    return next((VENV / "lib").glob("python3.*/site-packages"))


def uv_version() -> str | None:
    """Return the installed version of uv if it is the locked one."""
    locked = UV_LOCK.read_text().partition("uv==")[2].split()[0]
    return locked if (site_packages() / f"uv-{locked}.dist-info").exists() else None


def forget_incomplete(site: Path) -> list[str]:
    """Remove the metadata of packages with missing or truncated files, so that they are installed anew.

    An installer that was killed leaves them: their metadata says that they are installed.
    """
    forgotten = []
    for metadata in sorted(site.glob("*.dist-info")):
        if not is_complete(metadata):
            shutil.rmtree(metadata)
            forgotten.append(metadata.name.removesuffix(".dist-info"))
    return forgotten


def is_complete(metadata: Path) -> bool:
    """Return whether every file of a package's RECORD is there, with its size."""
    try:
        rows = list(csv.reader((metadata / "RECORD").read_text().splitlines()))
        # Installers add INSTALLER; without it, RECORD is the wheel's, and scripts may be missing.
        if not {f"{metadata.name}/METADATA", f"{metadata.name}/INSTALLER"} <= {row[0] for row in rows}:
            return False
        return all(
            (metadata.parent / path).stat().st_size == int(size) if size else True
            for path, _, size in rows
            if not path.endswith(".pyc")
        )
    except (OSError, ValueError):
        return False


def pip_settings() -> dict[str, str]:
    """Return what pip's configuration files and PIP_* variables say, by name."""
    command = [PYTHON, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.partition("=") for line in listed.splitlines()]
    # As pip ranks them: variables, then [install], then [global].
    ranked = [
        {
            key.removeprefix(f"{section}."): str(ast.literal_eval(value))
            for key, _, value in lines
            if key.startswith(f"{section}.")
        }
        for section in ("global", "install", ":env:")
    ]
    return {**ranked[0], **ranked[1], **ranked[2]}


def uv_settings(pip: Mapping[str, str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return uv's options and environment: uv reads none of pip's settings. uv's own variables win."""
    # pip takes the locked version from whichever index has it; hashes keep that safe.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, variable in UV_VARIABLES.items():
        if pip.get(name):
            found[variable] = " ".join(pip[name].split())
    places = [place for place in pip.get("find-links", "").split() if "://" in place or Path(place).exists()]
    if places:
        found["UV_FIND_LINKS"] = ",".join(places)
    switched = {name for name, value in pip.items() if value.lower() in {"1", "true", "yes", "on"}}
    if "no-cache-dir" in switched:
        found["UV_NO_CACHE"] = "1"
    return ["--no-index"] if "no-index" in switched else [], {**found, **environment}


def cache_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of uv's cache: one in .venv if its usual place is not writable."""
    if "UV_NO_CACHE" in environment:
        return {}
    default = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    cache = Path(environment.get("UV_CACHE_DIR") or default)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        usable = os.access(cache, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        return {"UV_CACHE_DIR": str(VENV / ".uv-cache")}
    # Hard links cannot cross file systems; without this, uv warns.
    return {"UV_LINK_MODE": "copy"} if cache.stat().st_dev != VENV.stat().st_dev else {}


def say(line: str) -> None:
    """Print a line at once, also to a pipe."""
    sys.stdout.write(f"install: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
