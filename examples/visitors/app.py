"""A page that counts its visitors in memory, and nowhere else: what it shows goes on in a clone."""

import html
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Visitors of {name}</title>
<style>
  body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1rem;
    color-scheme: light dark }}
  strong {{ font-size: 4rem; display: block; line-height: 1.1; font-variant-numeric: tabular-nums }}
</style>
<p>This is <b>{name}</b>. You are visitor</p><strong>{count}</strong>
<p>of process {pid}, which has been up for {age} s and keeps the number in its memory. Clone this environment: the
clone goes on from the same number, on its own.</p>
"""

began = time.monotonic()
count = 0
lock = threading.Lock()


class Visitors(BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        if self.path == "/health":
            return self.answer("text/plain", "good\n")
        if self.path != "/":
            return self.send_error(404)
        with lock:
            count += 1
            now = count
        name = self.headers.get("Host", "").split(".")[0]
        print(f"visitor {now}", flush=True)
        age = int(time.monotonic() - began)
        self.answer("text/html", PAGE.format(name=html.escape(name), count=now, pid=os.getpid(), age=age))

    def answer(self, kind, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("", 8000), Visitors).serve_forever()
