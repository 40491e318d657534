"""Check the locked packages for known vulnerabilities, with pip-audit; `make check` runs it.

Exit code 1 if a package has one that audit.yaml, beside this file, does not accept with a reason. If the
package index reports no vulnerabilities (many mirrors do not), or does not answer within the deadline, the
locks are reported as not checked, and nothing fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCKS = [
    *(ROOT / f"requirements{name}.lock" for name in ("", "-parquet", "-dev", "-uv")),
    *(ROOT / "containers" / name / "requirements.lock" for name in ("pipeline", "model_server")),
]
PROBE_SECONDS = 10
DEADLINE_SECONDS = 60
"""For everything: `make check` must not wait for an index that does not answer."""


class NotChecked(Exception):
    """The package index did not report vulnerabilities; the text says why."""


def pins(locks: list[Path]) -> dict[str, list[str]]:
    """Return the locked versions of each package; there may be one for each Python."""
    found = {
        pin for lock in locks for pin in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    }
    versions: dict[str, list[str]] = {}
    for name, version in sorted(found):
        versions.setdefault(name, []).append(version)
    return versions


def pip_audit(versions: dict[str, list[str]], timeout_seconds: float) -> list[dict[str, Any]]:
    """Return pip-audit's report of each package."""
    command = [
        sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json",
        "--progress-spinner", "off", "--timeout", str(PROBE_SECONDS),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # pip-audit refuses a second version of a package in the same file.
        rows = zip_longest(*([f"{name}=={each}\n" for each in found] for name, found in versions.items()))
        for number, row in enumerate(rows):
            file = Path(folder, f"{number}.txt")
            file.write_text("".join(filter(None, row)))
            command += ["--requirement", str(file)]
        try:
            ended = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=max(timeout_seconds, 0.1)
            )
        except subprocess.TimeoutExpired:
            raise NotChecked(f"no answer from the package index in {timeout_seconds:.0f} s") from None
    try:
        return list(json.loads(ended.stdout)["dependencies"])
    except (ValueError, KeyError):
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise NotChecked(f"pip-audit failed: {last}") from None


def report(versions: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the report of every package, after a probe with one that has known vulnerabilities."""
    began = time.monotonic()
    (probe,) = pip_audit({"tensorflow": versions["tensorflow"]}, PROBE_SECONDS)
    if "skip_reason" in probe:
        raise NotChecked("the package index reports no vulnerabilities")
    return pip_audit(versions, DEADLINE_SECONDS - (time.monotonic() - began))


def vulnerabilities(packages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the package and a line for each vulnerability."""
    for package in packages:
        for each in package.get("vulns", ()):
            fixed = ", ".join(each["fix_versions"]) or "no release"
            yield package["name"], f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}"


def main() -> int:
    """Return 1 if a vulnerability is not accepted."""
    accepted: dict[str, str] = yaml.safe_load((HERE / "audit.yaml").read_text()) or {}
    versions = pins(LOCKS)
    try:
        packages = report(versions)
    except NotChecked as reason:
        sys.stdout.write(f"audit: NOT CHECKED, {len(versions)} packages of {len(LOCKS)} locks: {reason}\n")
        return 0
    lines = sorted(set(vulnerabilities(packages)))
    refused = [line for name, line in lines if name not in accepted]
    for name, line in lines:
        sys.stdout.write(f"audit: {line} ({accepted.get(name, 'NOT ACCEPTED')})\n")
    skipped = sorted(package["name"] for package in packages if "skip_reason" in package)
    if skipped:
        sys.stdout.write(f"audit: NOT CHECKED, unknown to the package index: {', '.join(skipped)}\n")
    sys.stdout.write(
        f"audit: {len(packages) - len(skipped)} packages checked, {len(refused)} to fix or to accept\n"
    )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
