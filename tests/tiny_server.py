"""A program that takes tensorflow_model_server's flags and plays its status API, for tests of deployment.

It answers `GET /v1/models/NAME` with the versions under `--model_base_path`: the highest is AVAILABLE, or
in the state that a file `state` in its folder names (`LOADING`, `END broken graph`). Over gRPC it answers
any call with UNIMPLEMENTED; a server that was started while a file `mute` was in the base path answers none.
`--mode=dies` makes it end at once, `--mode=stubborn` ignore SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = """#!{python} -SE
import http.server, json, pathlib, signal, socketserver, sys, threading
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
base = pathlib.Path(flags["model_base_path"])
mute = (base / "mute").exists()
if flags.get("mode") == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if flags.get("mode") == "dies":
    print("\\n".join(f"line {{number}}" for number in range(1, 31)) + "\\nout of cheese")
    sys.exit(7)

def status(number, highest):
    file = base / str(number) / "state"
    usual = "AVAILABLE" if number == highest else "END"
    state, _, error = (file.read_text() if file.exists() else usual).partition(" ")
    return {{"version": str(number), "state": state,
            "status": {{"error_code": "INTERNAL" if error else "OK", "error_message": error}}}}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        numbers = sorted((int(child.name) for child in base.iterdir() if child.name.isdigit()), reverse=True)
        known = self.path == "/v1/models/" + flags["model_name"]
        answer = {{"model_version_status": [status(number, numbers[0]) for number in numbers]}}
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode() if known else b"not found")

def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

class Grpc(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.read(24)
        self.request.sendall(frame(4, 0, 0))
        while head := self.rfile.read(9):
            payload = self.rfile.read(int.from_bytes(head[:3], "big"))
            if (head[3], head[4]) == (4, 0):
                self.request.sendall(frame(4, 1, 0))
            elif head[3] == 1 and not mute:
                # :status 200, content-type application/grpc, grpc-status 12; no more frames of this stream
                fields = (b"content-type", b"application/grpc"), (b"grpc-status", b"12")
                literals = [b"\\x00" + bytes((len(a),)) + a + bytes((len(b),)) + b for a, b in fields]
                block = b"\\x88" + b"".join(literals)
                self.request.sendall(frame(1, 5, int.from_bytes(head[5:], "big"), block))

class Threads(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True

grpc = Threads(("127.0.0.1", int(flags["port"])), Grpc)
threading.Thread(target=grpc.serve_forever, daemon=True).start()
print("serving", sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(flags["rest_api_port"])), Handler).serve_forever()
"""


def write(file: Path) -> Path:
    """Write the program, executable."""
    file.write_text(PROGRAM.format(python=sys.executable))
    file.chmod(0o755)
    return file
