"""MultiInference (tensorflow_serving/servables/tensorflow/multi_inference.cc)."""

from __future__ import annotations

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2, model_pb2

from model_server.base.status import Code, StatusError, invalid_argument, naming
from model_server.models.servable import Servable
from model_server.requests.examples import (
    Question,
    answers,
    classify_question,
    fill_classifications,
    fill_regressions,
    regress_question,
)
from model_server.requests.predict import (
    CLASSIFY_METHOD,
    DEFAULT_SIGNATURE,
    REGRESS_METHOD,
    fill_model_spec,
)


def spec_of(request: inference_pb2.MultiInferenceRequest) -> model_pb2.ModelSpec:
    """Return the spec that the whole request is answered by: its first task's."""
    return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()


def infer(
    servable: Servable,
    request: inference_pb2.MultiInferenceRequest,
    timeout_seconds: float | None,
    check_method_name: bool,
) -> inference_pb2.MultiInferenceResponse:
    """Return every task's result, in order, from one run of the graph.

    Each task's own input is fed with the same examples: signatures of TensorFlow 2 have one placeholder each.
    """
    keys, questions = _questions(servable, request, check_method_name)
    feeds = sorted({question.feed for question in questions})
    names = sorted({name for question in questions for name in question.outputs.values()})
    by_name, count = answers(servable, feeds, names, request.input, timeout_seconds)
    response = inference_pb2.MultiInferenceResponse()
    for task, key, question in zip(request.tasks, keys, questions, strict=True):
        result = response.results.add()
        fill_model_spec(result.model_spec, task.model_spec, key, servable)
        values = {alias: by_name[name] for alias, name in question.outputs.items()}
        if task.method_name == CLASSIFY_METHOD:
            fill_classifications(result.classification_result, servable, question, values, count)
        else:
            fill_regressions(result.regression_result, servable, question, values, count)
    return response


def _questions(
    servable: Servable, request: inference_pb2.MultiInferenceRequest, check_method_name: bool
) -> tuple[list[str], list[Question]]:
    if not request.tasks:
        raise invalid_argument("ModelSpec has no name specified.")
    keys: list[str] = []
    questions: list[Question] = []
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in keys:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        if key not in servable.signatures:
            text = f"Requested signature not found in model graph: {key}"
            raise invalid_argument(naming(text, "Signatures", sorted(servable.signatures)))
        keys.append(key)
        questions.append(_question(task.method_name, servable.signatures[key], check_method_name))
    return keys, questions


def _question(method_name: str, signature: meta_graph_pb2.SignatureDef, check_method_name: bool) -> Question:
    if method_name == CLASSIFY_METHOD:
        return classify_question(signature, check_method_name)
    if method_name == REGRESS_METHOD:
        return regress_question(signature, check_method_name)
    raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method_name}")
