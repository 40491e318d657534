"""Ask the package index for known vulnerabilities of the locked packages; `make check` does.

Exit code 1 where a package has one that is not accepted in audit.yaml, with a reason, beside this file. An
index that does not say (many mirrors have no such service) is told, for one lock too, and fails nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
LOCKS = [
    HERE.parent / "requirements.lock",
    *(HERE.parent / "containers" / name / "requirements.lock" for name in ("pipeline", "model_server")),
]
TIMEOUT_SECONDS = 180


def asked(lock: Path) -> list[dict[str, Any]]:
    """Return what pip-audit says of each package of a lock; [] where it cannot say anything."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip", "--require-hashes",
        "--format", "json", "--progress-spinner", "off", "--timeout", "10",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        return list(json.loads(done.stdout)["dependencies"])
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []


def known_of(packages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of which the index says whether they are vulnerable."""
    return [each for each in packages if "skip_reason" not in each]


def found(packages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the package and a line for each vulnerability."""
    for package in packages:
        for each in package.get("vulns", ()):
            fixed = ", ".join(each["fix_versions"]) or "no release"
            yield package["name"], f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}"


def main() -> int:
    """Return 1 where a vulnerability is not accepted."""
    accepted: dict[str, str] = yaml.safe_load((HERE / "audit.yaml").read_text()) or {}
    told = {lock: asked(lock) for lock in LOCKS}
    packages = [each for of_lock in told.values() for each in of_lock]
    known = known_of(packages)
    if not known:
        sys.stdout.write("audit: the package index tells no vulnerabilities here; nothing was audited\n")
        return 0
    for lock in (lock for lock in LOCKS if not known_of(told[lock])):
        sys.stdout.write(f"audit: nothing was told of {lock.relative_to(HERE.parent)}: it was NOT AUDITED\n")
    lines = sorted(set(found(known)))
    refused = [line for name, line in lines if name not in accepted]
    for name, line in lines:
        sys.stdout.write(f"audit: {line} ({accepted.get(name, 'NOT ACCEPTED')})\n")
    left_out = f", {len(packages) - len(known)} could not be" if len(known) < len(packages) else ""
    sys.stdout.write(f"audit: {len(known)} packages audited{left_out}; {len(refused)} to mend or to accept\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
