#!/usr/bin/env python3
"""The service behind the chat: serves the page, signs tokens for whoever asks, and rolls dice.

    pip install grpcio grpcio-tools
    python3 examples/chat/service.py

A message of type `chat.roll` comes as a `MessageReceived` event; `SendToSession` with `reply_to` answers it. With `group`,
any number of these share the work.
"""

import argparse
import base64
import hashlib
import hmac
import http.server
import json
import pathlib
import random
import re
import sys
import tempfile
import threading
import time
import tomllib
import urllib.parse

import grpc
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
TOKEN_LIFETIME_S = 3600


def stubs(folder):
    """The admin API's classes, made from the proto into a folder."""
    known = pathlib.Path(protoc.__file__).parent / "_proto"
    sources = ["pushgate/v1/gateway.proto", "google/rpc/status.proto"]
    arguments = ["", f"-I{PROTO}", f"-I{known}", f"--python_out={folder}", f"--grpc_python_out={folder}", *sources]
    if protoc.main(arguments) != 0:
        sys.exit("the proto could not be compiled")
    sys.path.insert(0, folder)
    from pushgate.v1 import gateway_pb2, gateway_pb2_grpc

    return gateway_pb2, gateway_pb2_grpc


def token(secret, user):
    """A JWT for a user (RFC 7519), HS256. A real service asks for a password first."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    header = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    claims = {"sub": user.lower(), "name": user, "exp": int(time.time()) + TOKEN_LIFETIME_S}
    signed = header + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


def roll(text):
    """What `2d6` comes to."""
    match = re.fullmatch(r"(\d{1,2})d(\d{1,3})", text)
    if not match or int(match[1]) < 1 or int(match[2]) < 2:
        return {"error": "say how many dice and of how many sides, as in 2d6"}
    dice = [random.randint(1, int(match[2])) for _ in range(int(match[1]))]
    return {"dice": dice, "sum": sum(dice)}


def answer(gateway, api, event):
    message = event.message_received
    try:
        # Whatever a client sends gets here: JSON of any shape, bytes, numbers without end.
        asked = json.loads(message.json or "null")
        dice = asked.get("dice", "1d6") if isinstance(asked, dict) else "1d6"
    except ValueError:
        dice = ""
    try:
        notification = api.Notification(json=json.dumps(roll(str(dice))))
        request = api.SendToSessionRequest(session_id=message.session_id, notification=notification, reply_to=message.id)
        gateway.SendToSession(request, timeout=5)
    except grpc.RpcError as error:
        # He may have gone meanwhile.
        print(f"not answered: {error.code().name}", file=sys.stderr)


def listen(address, api, rpc):
    """Answers what comes, for ever; the gateway may be started anew meanwhile."""
    while True:
        try:
            with grpc.insecure_channel(address) as channel:
                gateway = rpc.GatewayStub(channel)
                wanted = api.StreamEventsRequest(
                    types=["message_received"], message_types=["chat.roll"], group="dice", raw_json=True
                )
                for event in gateway.StreamEvents(wanted):
                    if event.WhichOneof("event") == "message_received" and event.message_received.id:
                        answer(gateway, api, event)
        except grpc.RpcError as error:
            print(f"the gateway is not there ({error.code().name}); trying again", file=sys.stderr)
            time.sleep(1)


def page(secret, url):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = urllib.parse.urlsplit(self.path)
            if asked.path == "/":
                return self.send(200, "text/html; charset=utf-8", (HERE / "page.html").read_bytes())
            user = urllib.parse.parse_qs(asked.query).get("user", [""])[0]
            if asked.path != "/token":
                return self.send(404, "text/plain", b"not here\n")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", user):
                return self.send(400, "text/plain", b"a name of letters and digits, please\n")
            body = json.dumps({"token": token(secret, user), "url": url}).encode()
            return self.send(200, "application/json", body)

        def send(self, status, kind, body):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Page


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=HERE / "pushgate.toml", help="the gateway's configuration")
    parser.add_argument("--grpc", default="127.0.0.1:7001", help="the gateway's admin API")
    parser.add_argument("--url", default="ws://127.0.0.1:7000/ws", help="where the page connects to")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="where the page is served")
    options = parser.parse_args()

    secret = tomllib.loads(pathlib.Path(options.config).read_text())["auth"]["keys"][0]["secret"].encode()
    host, port = options.listen.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((host, int(port)), page(secret, options.url))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"the chat is at http://{host}:{server.server_port}/", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        listen(options.grpc, *stubs(folder))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
