"""A web service: ready once the file READY_FILE is there, or a proxy of the one at UPSTREAM.

SIGTERM ends it as a cluster wants it: what was asked before is answered, then it exits with 0.
"""

import http.client
import http.server
import os
import signal
import sys
import threading
import time

READY_FILE = os.environ.get("READY_FILE", "/")
UPSTREAM = os.environ.get("UPSTREAM")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if UPSTREAM:
            self.answer(*forward(self.path))
        elif self.path == "/ready" and not os.path.exists(READY_FILE):
            self.answer(503, "warming up\n")
        else:
            if self.path == "/slow":
                print("slow", flush=True)
                time.sleep(3)
            self.answer(200, f"hello from {os.uname().nodename}\n")

    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def forward(path):
    try:
        upstream = http.client.HTTPConnection(UPSTREAM, timeout=60)
        upstream.request("GET", path)
        response = upstream.getresponse()
        return response.status, response.read().decode()
    except OSError as error:
        return 502, f"{error}\n"


class Server(http.server.ThreadingHTTPServer):
    # Closing waits for the threads that still answer.
    daemon_threads = False


server = Server((sys.argv[1], int(sys.argv[2])), Handler)
# `shutdown` waits for the loop below, which this very thread runs.
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("serving", flush=True)
server.serve_forever(poll_interval=0.1)
server.server_close()
print("done", flush=True)
