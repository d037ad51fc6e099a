"""A stand-in for vLLM as the supervisor sees it: health, models, adapters, metrics, and a second process in its session."""

import argparse
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--model", default="base")
options.add_argument("--needs", type=Path, help="ends at once unless this file exists")
options.add_argument("--gate", type=Path, help="is ready only once this file exists")
options.add_argument("--busy", type=Path, help="has a request running while this file exists")
given = options.parse_args()
if given.needs and not given.needs.exists():
    sys.exit(f"the fake needs {given.needs.name}")
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
served = [given.model]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            return self.reply(200 if given.gate is None or given.gate.exists() else 503, {})
        if self.path == "/metrics":
            running = 1.0 if given.busy and given.busy.exists() else 0.0
            return self.reply(200, f'vllm:num_requests_running{{engine="0"}} {running}\n')
        return self.reply(200, {"data": [{"id": name} for name in served]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not Path(body["lora_path"]).is_dir():
            return self.reply(404, {"error": {"message": f"Loading lora {body['lora_name']} failed: no adapter"}})
        time.sleep(0.2)
        served.append(body["lora_name"])
        return self.reply(200, {})

    def reply(self, status: int, body: object) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()
