"""Which of the versions on disk are wanted (FileSystemStoragePathSourceConfig.ServableVersionPolicy)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorflow_serving.config import file_system_storage_path_source_pb2 as source_pb2

Found = Mapping[int, Path]


@dataclass(frozen=True)
class Latest:
    """The highest `count` numbers."""

    count: int = 1

    def choose(self, found: Found) -> Found:
        """Return the wanted ones of the versions found."""
        return {number: found[number] for number in sorted(found, reverse=True)[: self.count]}


@dataclass(frozen=True)
class All:
    """Every version."""

    def choose(self, found: Found) -> Found:
        """Return the wanted ones of the versions found."""
        return found


@dataclass(frozen=True)
class Specific:
    """These numbers, as far as they are there."""

    numbers: frozenset[int]

    def choose(self, found: Found) -> Found:
        """Return the wanted ones of the versions found."""
        return {number: path for number, path in found.items() if number in self.numbers}


VersionPolicy = Latest | All | Specific


def from_proto(policy: source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> VersionPolicy:
    """Return the policy; unset is the latest one, and "latest 0" counts as 1 too."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return All()
    if choice == "specific":
        return Specific(frozenset(policy.specific.versions))
    return Latest(max(1, policy.latest.num_versions))
