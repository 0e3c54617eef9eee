#!/usr/bin/env python3
"""Relays HTTP from one Unix socket to another, and writes each exchange down as a line of JSON.

Usage: exchanges.py LISTEN TO FILE
"""

import http.client
import http.server
import json
import socket
import socketserver
import sys

LISTEN, TO, FILE = sys.argv[1:]


class Onward(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(TO)


class Relay(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_POST(self):
        body = self.body()
        onward = Onward("swd")
        headers = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        onward.request("POST", self.path, body, headers)
        answer = onward.getresponse()
        answered = answer.read()
        line = {
            "method": self.path.lstrip("/"),
            "headers": headers,
            "request": json.loads(body) if body.strip() else None,
            "status": answer.status,
            "answer": json.loads(answered),
        }
        with open(FILE, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answered)))
        self.end_headers()
        self.wfile.write(answered)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(LISTEN, Relay).serve_forever()
