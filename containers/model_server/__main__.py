"""`python -m model_server` and the command `model_server`: a stand-in for `tensorflow_model_server`."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
from typing import NoReturn, TextIO

from model_server.base import flags, ports, settings
from model_server.base.status import StatusError, from_exception
from model_server.base.stop_signals import StopSignals
from model_server.observability import log_lines
from model_server.tensorflow_c import runtime

_USAGE_ERROR = 255
WORKER = "MODEL_SERVER_WORKER"  # set by fleet.py for the processes that it starts


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0, or 255 where the server did not start."""
    command_line = flags.parse(sys.argv[1:], os.environ)
    options = command_line.options
    if command_line.invalid or command_line.wants_help:
        for argument in command_line.invalid:
            _say(f"invalid value: {argument}", sys.stderr)
        _say(flags.usage("model_server"))
        return _USAGE_ERROR
    if options.version:
        version = runtime.tensorflow_version()
        _say(f"TensorFlow ModelServer: {version}+slipway\nTensorFlow Library: {version}")
        return 0
    if command_line.unknown:
        for argument in command_line.unknown:
            _say(f"unknown argument: {argument}")
        _say(flags.usage("model_server"))
    try:
        _start(command_line)
    except Exception as error:
        if not isinstance(error, StatusError):
            logging.getLogger(__name__).exception("the server failed")
        _say(f"Failed to start server. Error: {from_exception(error)}")
        return _leave(_USAGE_ERROR)
    return _leave(0)


def _start(command_line: flags.CommandLine) -> None:
    stop = StopSignals()
    chosen = settings.read(os.environ)
    log_lines.to_stderr(chosen.log_format)
    if command_line.unsupported:
        raise flags.unsupported_error(command_line)
    flags.check(command_line.options)
    # An idle connection takes a descriptor: with the usual 1,024, one client's could shut all others out.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    worker_of = os.environ.pop(WORKER, "")
    if not worker_of and not chosen.share_ports:
        ports.require_free(command_line.options, chosen.host)
    runtime.import_tensorflow()
    from model_server.base import platform_config  # need TensorFlow's protos
    from model_server.processes import server, worker  # need TensorFlow's protos
    from model_server.tensorflow_c import op_libraries  # need TensorFlow's protos

    op_libraries.load(chosen.ops)
    # What the imports left lives for ever: collections after a swap need not walk through it.
    gc.collect()
    gc.freeze()
    options = platform_config.applied(command_line.options)
    if worker_of:
        worker.run(options, chosen, worker_of)
    else:
        server.ModelServer(options, chosen, stop).serve()


def _say(text: str, stream: TextIO = sys.stdout) -> None:
    stream.write(text + "\n")
    stream.flush()


def _leave(code: int) -> NoReturn:
    """Exit now: at this point a graph run past its grace period must not keep the process alive."""
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
