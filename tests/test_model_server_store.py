"""Two processes' servable stores: a table that both know is in force when one number is written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.apis import model_pb2

from model_server.models.generations import Generation
from model_server.models.routing import Route, RoutingTable
from model_server.models.servable_store import ServableStore

SPEC = model_pb2.ModelSpec(name="model")


class Version:
    """A servable that knows its number, and whether it was closed."""

    def __init__(self, number: int) -> None:
        self.number, self.is_closed = number, False

    def close(self) -> None:
        self.is_closed = True


def _store(generation: Generation) -> ServableStore:
    def load(_: Path, number: int) -> Any:
        return Version(number)

    return ServableStore(load, generation)


@pytest.fixture
def stores() -> Iterator[list[ServableStore]]:
    """The lead's and a worker's, which share the generation's memory; both serve version 1."""
    first = Generation()
    second = Generation(os.dup(first.descriptor))
    made = [_store(first), _store(second)]
    for number in (1, 2):
        for store in made:
            store.load("model", number, Path("unused"))
    made[1].prepare(_table(1))
    made[0].publish(_table(1))
    yield made
    for descriptor in (first.descriptor, second.descriptor):
        os.close(descriptor)


def _table(*versions: int) -> RoutingTable:
    return RoutingTable(max(versions), {"model": Route(frozenset(versions))})


def _answering(store: ServableStore) -> Any:
    with store.use(SPEC) as servable:
        return servable


def test_a_prepared_table_is_not_in_force_yet(stores: list[ServableStore]) -> None:
    """A worker that knows of version 2 answers with version 1 until the lead publishes; then both at once."""
    lead, worker = stores
    worker.prepare(_table(1, 2))
    lead.prepare(_table(1, 2))
    assert [_answering(store).number for store in stores] == [1, 1]
    lead.publish(_table(1, 2))
    assert [_answering(store).number for store in stores] == [2, 2]


def test_a_request_keeps_the_version_that_it_began_with(stores: list[ServableStore]) -> None:
    """It is unloaded after the request's end, though its table is no longer in force."""
    lead, _ = stores
    with lead.use(SPEC) as servable:
        lead.publish(_table(2))
        unloading = threading.Thread(target=lead.unload, args=("model", 1))
        unloading.start()
        assert _answering(lead).number == 2
        assert isinstance(servable, Version) and servable.number == 1 and not servable.is_closed
    unloading.join(60)
    assert servable.is_closed and not lead.has("model", 1)
