"""Flags: each is implemented or refused with a reason; files that they name; how a start fails."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from model_server_fixtures import Models, StartServer, expected

from model_server.base import flags, settings
from model_server.base.status import StatusError

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, error_of, floats, predict_request, stub

from model_server.base import platform_config, session_config

REFUSED = (
    "use_alts_credentials", "xla_cpu_compilation_enabled", "thread_pool_factory_config_file",
    "mixed_precision", "skip_initialize_tpu",
)  # fmt: skip


OFFICIAL = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
batching_parameters_file enable_per_model_batching_parameters model_config_file
model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads
max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds flush_filesystem_caches
tensorflow_session_parallelism tensorflow_session_config_file tensorflow_intra_op_parallelism
tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file platform_config_file
per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
enable_model_warmup num_request_iterations_for_warmup version monitoring_config_file
remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
num_tflite_interpreters_per_pool enable_signature_method_name_check xla_cpu_compilation_enabled
enable_profiler thread_pool_factory_config_file mixed_precision skip_initialize_tpu
enable_grpc_healthcheck_service
"""


def options(*arguments: str) -> flags.Options:
    return flags.parse(arguments, {}).options


def given_value(name: str) -> str:
    """Return the flag with a value that is not its default."""
    default = next(flag.default for flag in flags.FLAGS if flag.name == name)
    return f"--{name}={str(not default).lower() if isinstance(default, bool) else '7'}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_exist_here_is_refused_with_its_reason(name: str) -> None:
    """Never silently ignored; the default may be given."""
    command_line = flags.parse([given_value(name)], {})
    assert command_line.unsupported == (name,)
    error = flags.unsupported_error(command_line)
    assert str(error).startswith(f"UNIMPLEMENTED: not supported here: --{name} (")
    assert "not yet" not in str(error)
    assert name not in {option.name for option in fields(flags.Options)}


def test_every_official_flag_is_implemented_or_refused_with_a_reason() -> None:
    """All 46 of 2.15.1, each once; none is known and then forgotten."""
    implemented = {option.name for option in fields(flags.Options)}
    refused = {flag.name for flag in flags.FLAGS if flag.refused}
    assert not implemented & refused
    assert implemented | refused == {flag.name for flag in flags.FLAGS} == set(OFFICIAL.split())
    assert len(flags.FLAGS) == len(OFFICIAL.split()) == 46


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--batching_parameters_file=/x",),
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        (
            ("--enable_batching", "--batching_parameters_file=/nowhere"),
            "NOT_FOUND: /nowhere; No such file or",
        ),
        (("--port=0",), "At least one of server_options.grpc_port or server_options.grpc_socket_path must"),
        (("--model_base_path=",), "Both server_options.model_base_path and server_options.model_config_file"),
        (("--mixed_precision=bfloat16",), "not supported here: --mixed_precision ("),
        (
            ("--use_alts_credentials", "--ssl_config_file=/x"),
            "Either use_alts_credentials must be false or ssl_config_file must be empty.",
        ),
        (("--tensorflow_session_config_file=/nowhere",), "NOT_FOUND: /nowhere; No such file or directory"),
        (
            (
                "--tensorflow_session_parallelism=1",
                "--tensorflow_intra_op_parallelism=1",
                "--tensorflow_inter_op_parallelism=1",
            ),
            "separately. You cannot configure all.",
        ),
    ],
)
def test_how_a_start_fails(
    start_server: StartServer, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 255, the reason in the official words, no trace."""
    server = start_server(tmp_path, *arguments, wait=False)
    assert server.exit_code() == 255
    assert "Failed to start server. Error: " in server.log
    assert message in server.log
    assert "Traceback" not in server.log


def test_a_session_config_file_is_read_and_flags_win_over_it(tmp_path: Path) -> None:
    """A flag that is not given leaves what the file says."""
    file = tmp_path / "session.cfg"
    file.write_text(
        "intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 4 isolate_session_state: true"
    )
    config = session_config.session_config(
        options(
            f"--tensorflow_session_config_file={file}",
            "--tensorflow_intra_op_parallelism=2",
            "--per_process_gpu_memory_fraction=0.25",
        )
    )
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (2, 4)
    assert config.isolate_session_state
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.25


def test_a_text_proto_error_is_logged_as_protobuf_words_it(start_server: StartServer, tmp_path: Path) -> None:
    """On standard error, with line and column; the status has the official text."""
    file = tmp_path / "session.cfg"
    file.write_text("intra_op_parallelism_threads: 3\nno_such_field: 4")
    server = start_server(tmp_path, f"--tensorflow_session_config_file={file}", wait=False)
    assert server.exit_code() == 255
    assert "Error parsing text-format tensorflow.ConfigProto: 2:1" in server.log
    assert 'has no field named "no_such_field"' in server.log
    assert f"INVALID_ARGUMENT: Invalid protobuf file: '{file}'" in server.log


PLATFORM = """
platform_configs {
  key: "tensorflow"
  value {
    source_adapter_config {
      [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
        legacy_config {
          session_config { intra_op_parallelism_threads: 3 }
          saved_model_tags: "serve"
          enable_model_warmup: true
          model_warmup_options { num_request_iterations { value: 5 } }
        }
      }
    }
  }
}
"""


def test_a_platform_config_takes_the_place_of_flags(tmp_path: Path) -> None:
    """Of those that say the same, as in the official server."""
    file = tmp_path / "platform.cfg"
    file.write_text(PLATFORM)
    applied = platform_config.applied(
        options(f"--platform_config_file={file}", "--saved_model_tags=x", "--enable_model_warmup=false")
    )
    assert applied.saved_model_tags == "serve"
    assert applied.num_request_iterations_for_warmup == 5
    assert session_config.session_config(applied).intra_op_parallelism_threads == 3
    assert platform_config.applied(options()) == options()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('key: "tensorflow"', 'key: "sklearn"', 'the only platform is "tensorflow", found "sklearn"'),
        ("saved_model_tags", "experimental_fixed_input_tensors", "Invalid protobuf file"),
        (PLATFORM, "", "no platform_configs"),
    ],
)
def test_a_platform_config_that_cannot_be_honoured(tmp_path: Path, old: str, new: str, message: str) -> None:
    """What this server does not know is an error, not ignored."""
    file = tmp_path / "platform.cfg"
    file.write_text(PLATFORM.replace(old, new))
    with pytest.raises(StatusError, match=message):
        platform_config.applied(options(f"--platform_config_file={file}"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MODEL_SERVER_DRAIN_SECONDS", "soon", "expected a number that is not negative, found 'soon'"),
        ("MODEL_SERVER_DRAIN_SECONDS", "-1", "expected a number that is not negative, found '-1'"),
        ("MODEL_SERVER_DRAIN_SECONDS", "nan", "expected a number that is not negative, found 'nan'"),
        ("MODEL_SERVER_REST_QUEUE", "1.5", "expected a whole number that is not negative, found '1.5'"),
        ("MODEL_SERVER_LOG_FORMAT", "xml", "expected text or json, found 'xml'"),
        ("MODEL_SERVER_REST_TLS", "maybe", "expected true or false, found 'maybe'"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named(variable: str, value: str, message: str) -> None:
    """With what it may be."""
    with pytest.raises(StatusError, match=f"{variable}: {message}"):
        settings.read({variable: value})


def test_settings_have_defaults_and_one_name_each() -> None:
    """An empty variable is none."""
    assert settings.read({}) == settings.read({"MODEL_SERVER_HOST": ""})
    assert {each.name for each in settings.SETTINGS} == {each.name for each in fields(settings.Settings)}


def test_json_log_lines(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """MODEL_SERVER_LOG_FORMAT=json: each line is an object, from the first to the last."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, MODEL_SERVER_LOG_FORMAT="json")
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"time", "severity", "message", "logger", "process"} == set(lines[0])
    assert any("listening" in line["message"] for line in lines)
    assert lines[-1]["message"] == "stopped"


def test_large_messages_and_channel_arguments(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """gRPC's own 4 MiB are no limit; --grpc_channel_arguments may set one."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--grpc_channel_arguments=grpc.max_receive_message_length=20000000")
    predict = stub(server).Predict
    answer = predict(predict_request(x=floats(*[2.0] * 2_000_000)), timeout=60)  # 8 MB each way
    assert answer.outputs["y"].float_val[1_999_999] == expected(2.0)
    code, details = error_of(predict, predict_request(x=floats(*[2.0] * 6_000_000)), timeout=60)
    assert code == "RESOURCE_EXHAUSTED"
    assert "20000000" in details
    assert predict(predict_request(x=floats(1)), timeout=TIMEOUT).outputs["y"].float_val[0] == expected(1)


def test_a_file_in_the_page_cache_is_given_back(models: Models, tmp_path: Path) -> None:
    """posix_fadvise on every file of the version; what is no file is left alone."""
    from model_server.loading import page_cache

    version = models.publish(tmp_path, 1)
    (version / "dangling").symlink_to(tmp_path / "nowhere")
    page_cache.drop(version)
    page_cache.drop(tmp_path / "nowhere")
    assert (version / "saved_model.pb").stat().st_size
