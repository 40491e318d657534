"""The quick way to answer, which reads requests and writes answers as bytes, says what the full one says."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_server_fixtures import NAME, Models
from model_server_requests import classify_request, example, floats, predict_request, regress_request, spec
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)
from waiting import eventually

from model_server.api.grpc.grpc_loop import handler_of
from model_server.api.grpc.servicers import PREDICTION_SERVICE, prediction_service
from model_server.base import flags
from model_server.base.status import Code
from model_server.models import servable
from model_server.models.routing import Route, RoutingTable
from model_server.models.servable_store import ServableStore
from model_server.requests import quick_requests
from model_server.requests.inference import Inference
from model_server.tensorflow_c import wire
from model_server.tensorflow_c.tf_tensors import Strings

pytest_plugins = ["model_server_fixtures"]
RESPONSES = {
    "Predict": predict_pb2.PredictResponse,
    "Classify": classification_pb2.ClassificationResponse,
    "Regress": regression_pb2.RegressionResponse,
}


class Call:
    """A call without a client."""

    def __init__(self, method: str, message: bytes, seconds: float | None = 60.0) -> None:
        self.method = method
        self.message = message
        self.started_ns = time.perf_counter_ns()
        self.seconds = seconds
        self.status: tuple[str, str] | None = None
        self.response: bytes | None = None
        self._code, self._details = "", ""

    def time_remaining(self) -> float | None:
        return self.seconds

    def set_code(self, code: Any) -> None:
        self._code = code.name

    def set_details(self, details: str) -> None:
        self._details = details

    def answer(self, response: bytes) -> None:
        if self._code:
            self.status = (self._code, self._details)
        else:
            self.response = response

    def fail(self, code: Code, message: str, retry_milliseconds: int | None = None) -> None:
        self.status = (code.name, message)

    @property
    def result(self) -> Any:
        """The parsed response, or the status; None before either."""
        return RESPONSES[self.method].FromString(self.response) if self.response is not None else self.status


class Engine:
    """An Inference over version 1 of the model, and the handlers that it leaves the rest to."""

    def __init__(self, models: Models, sharing: str = "auto") -> None:
        options = replace(flags.parse([], {}).options, model_name=NAME)
        store = ServableStore(lambda directory, number: servable.load(directory, number, options))
        store.load(NAME, 1, Path(models.store / "1"))
        store.publish(RoutingTable(1, {NAME: Route(frozenset({1}))}))
        service = prediction_service(store, check_method_names=False)
        self.handlers = {name: handler_of(service, f"/{PREDICTION_SERVICE}/{name}") for name in RESPONSES}
        self.runs: list[int] = []
        self.inference = Inference(store, self.handlers, 4, check_method_names=False, sharing=sharing)
        session = store._loaded[NAME, 1].servable.session
        run_to = session.run_to

        def counted(form: Any, feeds: Any, values: Any, *more: Any) -> Any:
            self.runs.append(len(values[0].values if isinstance(values[0], Strings) else values[0]))
            return run_to(form, feeds, values, *more)

        session.run_to = counted  # type: ignore[method-assign]

    def ask(self, *calls: Call) -> list[Any]:
        """Accept all, run, and wait for all answers."""
        for call in calls:
            self.inference.accept(call)
        self.inference.run()
        return [eventually(lambda call=call: call.result, every=0.001) for call in calls]

    def ask_fully(self, method: str, message: bytes) -> Any:
        """Ask the handler of servicers.py alone."""
        call = Call(method, message)
        call.answer(self.handlers[method](message, call))
        return call.result


@pytest.fixture(scope="module")
def engine(models: Models) -> Iterator[Engine]:
    made = Engine(models)
    yield made
    made.inference.close()


numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5)
signatures = {
    "Predict": ["serving_default", "text", "two_inputs", "classify", "nowhere"],
    "Classify": ["classify", "scores_only", "classes_only", "flat_scores", "one_row", "uneven", "nowhere"],
    "Regress": ["regress", "regress_flat", "wide_outputs", "double_outputs", "classify", "nowhere"],
}


@st.composite
def requests(draw: Any) -> tuple[str, bytes]:
    """A method and a request to it, often an odd one: of several parts, with unknown fields, or cut off."""
    method = draw(st.sampled_from(sorted(signatures)))
    signature, xs = draw(st.sampled_from(signatures[method])), draw(numbers)
    if method == "Classify":
        request = classify_request(signature, *xs)
    elif method == "Regress":
        request = regress_request(signature, *xs)
    else:
        alias = draw(st.sampled_from(["x", "text", "a", "inputs"]))
        request = predict_request(spec(signature=signature), **{alias: draw(tensors(xs))})
    serialized = request.SerializeToString()
    parts = [serialized]
    if draw(st.booleans()):
        again = type(request)()
        again.model_spec.signature_name = draw(st.sampled_from(signatures[method]))
        parts.append(draw(st.sampled_from([again.SerializeToString(), b"", wire.delimited(77, b"unknown")])))
    if draw(st.integers(0, 9)) == 0:
        parts.append(serialized[: draw(st.integers(0, len(serialized)))])
    return method, b"".join(draw(st.permutations(parts)))


@st.composite
def tensors(draw: Any, xs: list[float]) -> tensor_pb2.TensorProto:
    """The numbers as floats, packed or not, as content, or as strings; of any shape that may be wrong."""
    shape = draw(st.sampled_from([(len(xs), 1), (len(xs),), (), (1, len(xs)), (len(xs), 2)]))
    kind = draw(st.sampled_from(["packed", "content", "unpacked", "strings", "examples", "ints"]))
    proto = floats(*xs, shape=shape)
    if kind == "content":
        del proto.float_val[:]
        proto.tensor_content = np.array(xs, np.float32).tobytes()
    elif kind == "unpacked":
        del proto.float_val[:]
        each = wire.tag(5, 5)
        proto.MergeFromString(b"".join(each + np.float32(x).tobytes() for x in xs))
    elif kind in ("strings", "examples"):
        proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=proto.tensor_shape)
        made = [example(x=x).SerializeToString() if kind == "examples" else str(x).encode() for x in xs]
        proto.string_val.extend(made)
    elif kind == "ints":
        proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT32, tensor_shape=proto.tensor_shape)
        proto.int_val.extend([1] * len(xs))
    return proto


@given(asked=st.lists(requests(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quick_and_full_answers_are_equal(engine: Engine, asked: list[tuple[str, bytes]]) -> None:
    """Whatever is asked, together or alone: the same message, or the same code and text."""
    quick = engine.ask(*(Call(*each) for each in asked))
    assert quick == [engine.ask_fully(*each) for each in asked]


def test_what_waits_shares_a_run(engine: Engine) -> None:
    """Seven requests of all sizes are one run, and each gets its own rows."""
    engine.runs.clear()
    asked = [list(range(first, first + size)) for first, size in enumerate((1, 2, 3, 1, 1, 5, 1))]
    calls = [Call("Regress", regress_request("regress", *xs).SerializeToString()) for xs in asked]
    answers = engine.ask(*calls)
    assert engine.runs == [14]
    assert [[each.value for each in answer.result.regressions] for answer in answers] == [
        [x / 2 + 2 for x in xs] for xs in asked
    ]


def test_one_malformed_request_of_a_batch_fails_alone(engine: Engine) -> None:
    """The others, innocent, are answered; the official server fails all."""
    good = predict_request(spec(signature="classify"), inputs=_strings(example(x=4.0).SerializeToString()))
    bad = predict_request(spec(signature="classify"), inputs=_strings(b"garbage"))
    calls = [Call("Predict", each.SerializeToString()) for each in (good, bad, good)]
    first, failed, last = engine.ask(*calls)
    assert first.outputs["scores"].float_val[0] == last.outputs["scores"].float_val[0] == 4.0
    assert failed[0] == "INVALID_ARGUMENT"
    assert failed[1].startswith("Could not parse example input, value: 'garbage'")


def test_different_types_and_shapes_are_not_mixed(engine: Engine) -> None:
    """A float and an int32 are two runs, of which one has the official error."""
    engine.runs.clear()
    wide = predict_request(x=floats(1, 2, 3, 4, shape=(2, 2)))
    calls = [
        Call("Predict", each.SerializeToString())
        for each in (predict_request(x=floats(2)), wide, predict_request(x=floats(4)))
    ]  # fmt: skip
    first, second, third = engine.ask(*calls)
    assert (first.outputs["y"].float_val, third.outputs["y"].float_val) == ([3.0], [4.0])
    assert list(second.outputs["y"].float_val) == [2.5, 3.0, 3.5, 4.0]
    assert sorted(engine.runs) == [2, 2]


def test_batching_can_be_switched_off(models: Models) -> None:
    """Then every request is a run of its own."""
    engine = Engine(models, sharing="off")
    calls = [Call("Regress", regress_request("regress", x).SerializeToString()) for x in (1, 2, 3)]
    assert [each.result.regressions[0].value for each in engine.ask(*calls)] == [2.5, 3.0, 3.5]
    assert engine.runs == [1, 1, 1]
    engine.inference.close()


def test_a_request_without_rows_is_asked_alone(engine: Engine) -> None:
    """A run of no rows is a run; it just has no company."""
    (answer,) = engine.ask(Call("Predict", predict_request(x=floats(shape=(0, 1))).SerializeToString()))
    assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == [0, 1]


def test_a_request_that_is_run_alone_leaves_nothing_in_memory(engine: Engine) -> None:
    """A client that sends one after another would take all of it, 15 KiB at a time."""
    call = Call("Predict", predict_request(z=floats(1)).SerializeToString())
    engine.ask(call)
    left = weakref.ref(call)
    del call
    assert eventually(lambda: gc.collect() >= 0 and left() is None, seconds=10)


def test_who_waits_no_more_is_not_asked_for(engine: Engine) -> None:
    """A request whose deadline passed in the queue costs no run."""
    engine.runs.clear()
    late = Call("Classify", classify_request("nowhere", 1.0).SerializeToString(), seconds=0.0)
    assert engine.ask(late) == [("DEADLINE_EXCEEDED", "Deadline Exceeded while waiting in the server")]
    assert engine.runs == []


def test_answers_do_not_depend_on_the_batch(engine: Engine) -> None:
    """The same bits, alone and in company: what comparing digit by digit relies on."""
    xs = [float(x) for x in np.random.default_rng(1).normal(size=64).astype(np.float32)]
    alone = [engine.ask(Call("Classify", classify_request("classify", x).SerializeToString()))[0] for x in xs]
    together = engine.ask(
        *(Call("Classify", classify_request("classify", x).SerializeToString()) for x in xs)
    )
    assert alone == together


def test_requests_with_context_or_without_a_spec_are_left_to_the_full_way() -> None:
    """They are not what is asked all day."""
    assert quick_requests.read_examples(b"") is None
    assert quick_requests.read_predict(b"") is None
    assert quick_requests.read_examples(b"\xff") is None
    status = get_model_status_pb2.GetModelStatusRequest(model_spec=spec()).SerializeToString()
    assert quick_requests.read_examples(status) is None


def _strings(*values: bytes) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=values)
    proto.tensor_shape.dim.add(size=len(values))
    return proto
