"""`make install`: when it has something to do, what it repairs, and what uv gets of pip's settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from slipway_command import REPOSITORY


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, in a checkout with locks of a line each and an installed environment."""
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / ".ci" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checkout = tmp_path / "checkout"
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (checkout / ".venv" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages").mkdir(parents=True)
    locks = (f"requirements{name}.lock" for name in ("-uv", "", "-parquet", "-dev"))
    for name in ("pyproject.toml", *locks):
        (checkout / name).write_text(f"# {name}\n")
    _place(module, checkout, monkeypatch)
    module.STAMP.write_text(module.stamp("runtime"))
    return module


def _place(module: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, parquet, dev = (checkout / f"requirements{name}.lock" for name in ("", "-parquet", "-dev"))
    for name, value in {
        "ROOT": checkout, "VENV": checkout / ".venv", "PYTHON": checkout / ".venv" / "bin" / "python",
        "STAMP": checkout / ".venv" / ".installed", "UV_LOCK": checkout / "requirements-uv.lock",
        "LOCKS": {"runtime": [runtime], "parquet": [runtime, parquet], "dev": [runtime, parquet, dev]},
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)


def test_an_install_that_matches_is_left_alone(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started; development packages include the others, and not the other way round."""
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(sys, "argv", ["install.py", "--python"])
    assert install.main() == 0
    assert not install.installed("dev", same_python=False)
    install.STAMP.write_text(install.stamp("dev"))
    assert install.installed("runtime", same_python=False)
    assert install.installed("parquet", same_python=False)


def _edit_the_lock(install: ModuleType, _: Path) -> None:
    install.LOCKS["runtime"][0].write_text("other==1\n")


def _edit_uvs_lock(install: ModuleType, _: Path) -> None:
    install.UV_LOCK.write_text("uv==1\n")


def _interrupt(install: ModuleType, _: Path) -> None:
    install.STAMP.unlink()


def _remove_the_python(install: ModuleType, folder: Path) -> None:
    install.PYTHON.unlink()
    install.PYTHON.symlink_to(folder / "gone")


def _upgrade_the_python(install: ModuleType, folder: Path) -> None:
    other = folder / "python3.11.99"
    other.symlink_to("/bin/true")
    install.PYTHON.unlink()
    install.PYTHON.symlink_to(other)


@pytest.mark.parametrize(
    "change", [_edit_the_lock, _edit_uvs_lock, _interrupt, _remove_the_python, _upgrade_the_python]
)
def test_a_change_is_installed(
    install: ModuleType, tmp_path: Path, change: Callable[[ModuleType, Path], None]
) -> None:
    """A lock, an interrupted install, a Python that is gone or another."""
    assert install.installed("runtime", same_python=False)
    change(install, tmp_path)
    assert not install.installed("runtime", same_python=False)


def test_a_moved_checkout_is_installed_anew(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts name the folder that they were installed in; a link to the environment does not move it."""
    linked = tmp_path / "linked"
    linked.symlink_to(install.ROOT)
    old = install.ROOT
    _place(install, linked, monkeypatch)
    assert install.installed("runtime", same_python=False)
    moved = old.rename(tmp_path / "moved")
    _place(install, moved, monkeypatch)
    assert not install.installed("runtime", same_python=False)


def test_only_a_python_that_was_given_remakes_the_environment(install: ModuleType) -> None:
    """`make PYTHON=python3.10 install` in an environment of 3.11, and `make install` after it."""
    lib = next((install.VENV / "lib").iterdir())
    lib.rename(lib.with_name("python3.9"))
    assert not install.installed("runtime", same_python=True)
    assert install.installed("runtime", same_python=False)


def _package(site: Path, name: str) -> Path:
    metadata = site / f"{name}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: x\n")
    (metadata / "INSTALLER").write_text("pip\n")
    (site / f"{name}.py").write_text("VALUE = 1\n")
    (metadata / "RECORD").write_text(
        f"{name}.py,sha256=x,10\n{name}.pyc,,\n{name}-1.dist-info/METADATA,sha256=x,8\n"
        f"{name}-1.dist-info/INSTALLER,sha256=x,4\n{name}-1.dist-info/RECORD,,\n"
    )
    return metadata


def test_packages_that_a_killed_install_left_incomplete_are_installed_anew(install: ModuleType) -> None:
    """Their metadata says that they are installed; a whole package keeps its own."""
    site = install.site_packages()
    whole, _, _, listless, bare, unpacked = (
        _package(site, name) for name in ("whole", "missing", "cut", "listless", "bare", "unpacked")
    )
    (site / "missing.py").unlink()
    (site / "cut.py").write_text("VALUE")
    (listless / "RECORD").unlink()
    (bare / "METADATA").unlink()
    record = unpacked / "RECORD"  # still the wheel's: pip adds scripts and INSTALLER at the end
    record.write_text("".join(line for line in record.open() if "INSTALLER" not in line))
    assert install.forget_incomplete(site) == ["bare-1", "cut-1", "listless-1", "missing-1", "unpacked-1"]
    assert list(site.glob("*.dist-info")) == [whole]


def test_uv_gets_pips_settings(install: ModuleType, tmp_path: Path) -> None:
    """Index, certificates, proxy and wheelhouse; folders that do not exist are left out, as pip does."""
    options, environment = install.uv_settings(
        {
            "index-url": "https://user:secret@mirror.test/simple", "extra-index-url": "https://a.test\nhttps://b.test",
            "find-links": f"{tmp_path} {tmp_path}/missing https://wheels.test/", "no-index": "1",
            "cert": "/etc/ca.pem", "client-cert": "/etc/me.pem", "proxy": "http://proxy.test:3128",
            "trusted-host": "mirror.test", "timeout": "7", "no-cache-dir": "true",
        },
        {"HOME": "/home/me"},
    )  # fmt: skip
    assert options == ["--no-index"]
    assert environment == {
        "HOME": "/home/me", "UV_DEFAULT_INDEX": "https://user:secret@mirror.test/simple",
        "UV_INDEX": "https://a.test https://b.test", "UV_FIND_LINKS": f"{tmp_path},https://wheels.test/",
        "SSL_CERT_FILE": "/etc/ca.pem", "SSL_CLIENT_CERT": "/etc/me.pem", "ALL_PROXY": "http://proxy.test:3128",
        "UV_INSECURE_HOST": "mirror.test", "UV_HTTP_TIMEOUT": "7", "UV_NO_CACHE": "1",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }  # fmt: skip


def test_uvs_own_variables_win(install: ModuleType) -> None:
    """Whoever sets them means uv."""
    options, environment = install.uv_settings(
        {"index-url": "https://pip.test", "no-index": "false"}, {"UV_DEFAULT_INDEX": "https://uv.test"}
    )
    assert options == []
    assert environment["UV_DEFAULT_INDEX"] == "https://uv.test"


def test_settings_are_those_that_pip_would_use(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its configuration file and its variables, which win."""
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://global.test\ncert = /global.pem\n"
        "[install]\ncert = /install.pem\nfind-links =\n  /a\n  /b\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.test")
    found = install.pip_settings()
    assert found["index-url"] == "https://variable.test"
    assert found["cert"] == "/install.pem"
    assert found["find-links"].split() == ["/a", "/b"]


def test_a_cache_that_cannot_be_written_is_replaced(install: ModuleType, tmp_path: Path) -> None:
    """By one beside the packages, which hard links reach."""
    file = tmp_path / "file"
    file.write_text("")
    expected = {"UV_CACHE_DIR": str(install.VENV / ".uv-cache")}
    assert install.cache_settings({"XDG_CACHE_HOME": str(file)}) == expected
    assert install.cache_settings({"UV_CACHE_DIR": str(file / "cache")}) == expected
    assert install.cache_settings({"UV_CACHE_DIR": str(tmp_path / "cache")}) == {}
    assert install.cache_settings({"UV_NO_CACHE": "1", "UV_CACHE_DIR": str(file)}) == {}


def test_a_failed_install_ends_in_one_line(install: ModuleType) -> None:
    """The program's own error is above it; the environment is not taken as installed."""
    install.STAMP.unlink()
    install.PYTHON.unlink()
    program = REPOSITORY / ".ci" / "install.py"
    checkout = install.ROOT
    (checkout / ".ci").mkdir()
    (checkout / ".ci" / "install.py").write_bytes(program.read_bytes())
    install.PYTHON.write_text("#!/bin/sh\ncase $* in *version_info*) exit 0;; esac\nexit 3\n")
    install.PYTHON.chmod(0o755)
    install.UV_LOCK.write_text("uv==1 \\\n")
    ended = subprocess.run(
        [sys.executable, ".ci/install.py"], cwd=checkout, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("ended with exit code 3; see above")
    assert "Traceback" not in ended.stderr
    assert not install.STAMP.exists()


def test_packages_are_compiled_where_python_may_not_write(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, where PYTHONDONTWRITEBYTECODE is set, each process compiled TensorFlow: 11 s, not 4."""
    module = install.site_packages() / "tensorflow" / "python" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1\n")
    (module.parent / "template.py").write_text("{% not python %}\n")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    install.compile_packages()
    assert [path.name.partition(".")[0] for path in module.parent.glob("__pycache__/*.pyc")] == ["module"]
