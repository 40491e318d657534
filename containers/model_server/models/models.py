"""The models of this server: their configs, labels and versions, and what of them is in service."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor

from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from model_server.base.status import Code, StatusError
from model_server.models import model_config
from model_server.models.model_config import ModelConfig
from model_server.models.routing import Route, RoutingTable
from model_server.models.servable_store import ServableStore
from model_server.models.version_states import LoadPolicy, State
from model_server.models.versions import ModelVersions, Workshop

_LOG = logging.getLogger(__name__)

VersionStatus = tuple[int, State, StatusError | None]


class Models:
    """Applies configs, each wholly or not at all, and publishes routing tables.

    `publish` is told of every table, in order; when it returns, requests are answered by that table.
    `applied` is told of every config that has taken effect.
    """

    def __init__(
        self,
        store: ServableStore,
        policy: LoadPolicy,
        loaders: Executor,
        unloaders: Executor,
        publish: Callable[[RoutingTable], None],
        applied: Callable[[Sequence[ModelConfig]], None],
        allow_labels_for_unavailable: bool = False,
    ) -> None:
        self._policy = policy
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._changed = threading.Condition(threading.RLock())
        self._workshop = Workshop(store, loaders, unloaders, self._changed, self._publish)
        self._publish_table = publish
        self._applied = applied
        self._table = RoutingTable()
        self._models: dict[str, ModelVersions] = {}
        self._stopped = False

    def names(self) -> list[str]:
        """Return the configured models, in alphabetical order."""
        with self._changed:
            return sorted(name for name, model in self._models.items() if model.config)

    def statuses(self, name: str) -> list[VersionStatus]:
        """Return what is known of a model's versions, highest first; of removed models too."""
        model = self._models.get(name)
        return model.statuses() if model else []

    def labels(self, name: str) -> dict[str, int]:
        """Return a configured model's labels."""
        route = self._table.models.get(name)
        return dict(route.labels) if route else {}

    def waited_for(self) -> list[str]:
        """Return the configured models of which no version is in service."""
        return sorted(name for name, route in self._table.models.items() if not route.versions)

    def load_attempts(self) -> int:
        """Return how often a version has been loaded, or tried to be, since the start."""
        with self._changed:
            return sum(model.load_attempts for model in self._models.values())

    def is_current(self, config: config_pb2.ModelServerConfig) -> bool:
        """Tell whether `config` is what is served now. Raises StatusError where it is wrong."""
        with self._changed:
            wanted = {each.name: each for each in model_config.check(config, self.names())}
            return wanted == {name: model.config for name, model in self._models.items() if model.config}

    def apply(self, config: config_pb2.ModelServerConfig) -> list[str]:
        """Serve by `config` from now on, and return the names of the models that are new.

        Policies and base paths take effect with the next look at the disk; labels and removed models at
        once and together. Raises StatusError where the config is wrong; then nothing has changed.
        """
        with self._changed:
            before = self.names()
            configs = model_config.check(config, before)
            self._require_label_targets(configs)
            for removed in set(before) - {each.name for each in configs}:
                self._models[removed].configure(None)
                _LOG.info("model %s: removed from the config", removed)
            for each in configs:
                self._configure(each)
            self._publish()
            self._applied(configs)
            return sorted({each.name for each in configs} - set(before))

    def wait_until_settled(
        self, names: Collection[str], timeout_seconds: float | None = None, what: str = "model"
    ) -> None:
        """Wait until each of these models is available, removed, or has failed for good.

        Returns early after stop(). Raises StatusError: UNKNOWN naming those that failed, of which there are
        so many `what`(s), DEADLINE_EXCEEDED.
        """
        ends = time.monotonic() + timeout_seconds if timeout_seconds is not None else None
        with self._changed:
            while not self._stopped and any(not self._is_settled(name) for name in names):
                left = ends - time.monotonic() if ends is not None else None
                if left is not None and left <= 0:
                    raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
                self._changed.wait(left)
            failed = [
                f"{{{{name: {name} version: {number}}} due to error: {error}}}, "
                for name in sorted(names)
                for number, error in self._models[name].failures()
            ]
        if failed:
            text = "".join(failed)
            raise StatusError(Code.UNKNOWN, f"{len(failed)} {what}(s) did not become available: {{{text}}}")

    def poll_file(self, path: str, seconds: int) -> None:
        """Read the config file again and again, in the background; a wrong one changes nothing."""
        threading.Thread(target=self._follow_file, args=(path, seconds), name="config", daemon=True).start()

    def stop(self) -> None:
        """Look for no more versions; what is loaded stays in service."""
        with self._changed:
            self._stopped = True
            for model in self._models.values():
                model.stop()
            self._changed.notify_all()

    def _configure(self, config: ModelConfig) -> None:
        model = self._models.get(config.name)
        if model is None:
            model = self._models[config.name] = ModelVersions(config.name, self._policy, self._workshop)
            model.configure(config)
            model.start()
        elif model.config != config:
            model.configure(config)

    def _require_label_targets(self, configs: Iterable[ModelConfig]) -> None:
        for config in configs:
            route = self._table.models.get(config.name, Route())
            for label, number in config.labels.items():
                is_move = route.labels.get(label, number) != number
                allowed = self._allow_labels_for_unavailable and not is_move
                if number not in route.versions and not allowed:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {config.name}, "
                        "which is not currently available for inference",
                    )

    def _is_settled(self, name: str) -> bool:
        model = self._models[name]
        return model.config is None or bool(model.route().versions) or bool(model.failures())

    def _publish(self) -> None:
        routes = {name: model.route() for name, model in self._models.items() if model.config}
        self._table = RoutingTable(self._table.generation + 1, routes)
        self._publish_table(self._table)

    def _follow_file(self, path: str, seconds: int) -> None:
        complaint = ""
        while not self._wait_for_stop(seconds):
            try:
                config = model_config.read_file(path)
                if not self.is_current(config):
                    self.apply(config)
                    _LOG.info("%s: its models are served from now on", path)
                complaint = ""
            except StatusError as error:
                if complaint != str(error):
                    complaint = str(error)
                    _LOG.error("%s is not followed, the config before it stays: %s", path, error)

    def _wait_for_stop(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped, seconds)
