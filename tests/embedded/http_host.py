"""An embedded engine behind ClickHouse's HTTP protocol, as far as its driver uses it.

python http_host.py DATA_DIR CONFIG_FILE
< the port that it listens on
"""

import base64
import http.server
import sys
import threading
import urllib.parse

from chdb import session


def handler_of(engine):
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sql = (query.get("query") or [""])[0] + body.decode()
            kind, _, secret = (self.headers.get("Authorization") or "").partition(" ")
            if kind == "Basic" and base64.b64decode(secret) != b"default:":
                self.answer(516, b"Code: 516. DB::Exception: default: Authentication failed")
                return
            if sql.startswith("SYSTEM RELOAD"):
                # The embedded engine has read everything when it started, and knows no reloading.
                self.answer(200, b"")
                return
            try:
                with lock:
                    data = engine.query(sql, "TabSeparated").bytes()
            except Exception as error:
                self.answer(500, str(error).encode())
            else:
                self.answer(200, data)

        def answer(self, status, data):
            self.send_response(200 if status == 200 else 500)
            if status != 200:
                self.send_header("X-ClickHouse-Exception-Code", str(status))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def main():
    engine = session.Session(f"{sys.argv[1]}?config-file={sys.argv[2]}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(engine))
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
