"""Keeps notes in PostgreSQL and tells what it holds in memory.

    GET  /        notes as text
    POST /notes   adds the body as a note
    GET  /status  JSON: memory of this process, and the session it has had with the database since it started
    GET  /health  200 when the database answers

One connection for the whole life of the process. A temporary table lives in that session only, so it shows whether
a clone has the very session or a new one.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

MAX_NOTE = 64 * 1024


class Session:
    """The connection; used by one request at a time, made again only when it breaks."""

    def __init__(self):
        self.lock = threading.Lock()
        self.connection = None
        self.connects = 0

    def connect(self):
        with open(os.environ["DATABASE_PASSWORD_FILE"], encoding="utf-8") as file:
            password = file.read().strip()
        connection = psycopg2.connect(
            host=os.environ["DATABASE_HOST"],
            dbname=os.environ["DATABASE_NAME"],
            user=os.environ["DATABASE_USER"],
            password=password,
            connect_timeout=5,
            application_name="notes",
            keepalives_idle=30,
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL,"
                " written timestamptz NOT NULL DEFAULT now())"
            )
            cursor.execute("CREATE TEMPORARY TABLE session_state (queries bigint NOT NULL)")
            cursor.execute("INSERT INTO session_state VALUES (0)")
        self.connection = connection
        self.connects += 1

    def run(self, *statements):
        """Runs statements, each (sql, parameters); answers the rows of the last."""
        with self.lock:
            if self.connection is None or self.connection.closed:
                self.connect()
            try:
                with self.connection.cursor() as cursor:
                    for sql, parameters in statements:
                        cursor.execute(sql, parameters)
                    return cursor.fetchall()
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.connection.close()
                raise


SESSION = Session()
STARTED = time.time()
COUNTER_LOCK = threading.Lock()
COUNTER = 0

COUNT_QUERY = ("UPDATE session_state SET queries = queries + 1", ())


def status():
    global COUNTER
    with COUNTER_LOCK:
        COUNTER += 1
        counter = COUNTER
    row = SESSION.run(
        COUNT_QUERY,
        (
            "SELECT pg_backend_pid(), extract(epoch FROM backend_start)::float8, (SELECT queries FROM session_state),"
            " (SELECT count(*) FROM notes), (SELECT text FROM notes ORDER BY id DESC LIMIT 1)"
            " FROM pg_stat_activity WHERE pid = pg_backend_pid()",
            (),
        ),
    )[0]
    return {
        "hostname": socket.gethostname(),
        "started": STARTED,
        "counter": counter,
        "database": {
            "connects": SESSION.connects,
            "backend_pid": row[0],
            "backend_start": row[1],
            "session_queries": row[2],
            "notes": row[3],
            "latest_note": row[4],
        },
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_request(self, code="-", size="-"):
        # Health checks would be all that the log says.
        if self.path != "/health" or code != 200:
            super().log_request(code, size)

    def answer(self, code, body, content_type="text/plain; charset=utf-8"):
        data = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self, respond):
        try:
            respond()
        except psycopg2.Error as error:
            print(f"database: {error}", file=sys.stderr)
            self.answer(503, "the database does not answer\n")

    def do_GET(self):
        self.handle_request(self.get)

    def do_POST(self):
        self.handle_request(self.post)

    def get(self):
        if self.path == "/":
            rows = SESSION.run(COUNT_QUERY, ("SELECT text FROM notes ORDER BY id", ()))
            self.answer(200, "".join(f"{text}\n" for (text,) in rows) or "no notes yet\n")
        elif self.path == "/status":
            self.answer(200, json.dumps(status()) + "\n", "application/json")
        elif self.path == "/health":
            SESSION.run(("SELECT 1", ()))
            self.answer(200, "ok\n")
        else:
            self.answer(404, "not found\n")

    def post(self):
        length = self.headers.get("Content-Length", "")
        if self.path != "/notes":
            self.close_connection = True
            self.answer(404, "not found\n")
        elif not length.isdigit() or int(length) > MAX_NOTE:
            self.close_connection = True
            self.answer(413, f"a note has at most {MAX_NOTE} bytes\n")
        else:
            text = self.rfile.read(int(length)).decode("utf-8", "replace").replace("\0", "").strip()
            rows = SESSION.run(COUNT_QUERY, ("INSERT INTO notes (text) VALUES (%s) RETURNING id", (text,)))
            self.answer(201, f"note {rows[0][0]}\n")


def main():
    server = ThreadingHTTPServer(("", 8000), Handler)
    # As process 1 nothing ends us by default (pid_namespaces(7)).
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("listening on port 8000", file=sys.stderr)
    server.serve_forever()


if __name__ == "__main__":
    main()
