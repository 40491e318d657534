"""--flush_filesystem_caches: files that a session has in memory need no second copy in the page cache."""

from __future__ import annotations

import os
from pathlib import Path


def drop(directory: Path) -> None:
    """Advise the kernel that nobody needs the files under `directory`; what cannot be opened is left."""
    for path in directory.rglob("*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # not a file, or a file system without a cache
        finally:
            os.close(descriptor)
