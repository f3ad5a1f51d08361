"""A client as an application in Python would write it: `websockets`, and a token by `PyJWT`.

client.py URL USER [--way header|protocol|query|message] [--take N] [--ack] [--token good|wrong|expired]

Prints every message on a line of its own, bytes as `payloadBase64` beside their envelope. After N notifications it says
goodbye, in a message that is worth compressing; at the end it prints how the connection closed, and whether
permessage-deflate was negotiated, which the library offers by itself.
"""

import argparse
import asyncio
import base64
import json
import time

import jwt
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SECRET = "a secret that only tests know, and only they"
PATIENCE_SECONDS = 30
GOODBYE = "goodbye " * 500

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("user")
arguments.add_argument("--way", default="header", choices=["header", "protocol", "query", "message"])
arguments.add_argument("--take", type=int, default=1)
arguments.add_argument("--ack", action="store_true")
arguments.add_argument("--token", default="good", choices=["good", "wrong", "expired"])
given = arguments.parse_args()


def token():
    expires = int(time.time()) + (-3600 if given.token == "expired" else 3600)
    secret = SECRET + (" not" if given.token == "wrong" else "")
    return jwt.encode({"sub": given.user, "exp": expires}, secret, algorithm="HS256")


def decode(message):
    if isinstance(message, str):
        return json.loads(message)
    length = int.from_bytes(message[:4], "big")
    envelope = json.loads(message[4 : 4 + length])
    envelope["payloadBase64"] = base64.b64encode(message[4 + length :]).decode()
    return envelope


async def main():
    url, options = given.url, {}
    if given.way == "header":
        options["additional_headers"] = {"Authorization": f"Bearer {token()}"}
    elif given.way == "protocol":
        options["subprotocols"] = ["pushgate.v1.json", f"bearer.{token()}"]
    elif given.way == "query":
        url += ("&" if "?" in url else "?") + "token=" + token()
    async with connect(url, **options) as socket:
        if given.way == "message":
            await socket.send(json.dumps({"type": "auth", "token": token()}))
        if given.way == "protocol":
            assert socket.subprotocol == "pushgate.v1.json"
        left = given.take
        try:
            async for raw in socket:
                message = decode(raw)
                print(json.dumps(message), flush=True)
                if message["type"] == "notification":
                    left -= 1
                    if given.ack:
                        await socket.send(json.dumps({"type": "ack", "offset": message["offset"]}))
                elif message["type"] == "echo_response":
                    assert message["data"] == GOODBYE
                    await socket.close()
                if left == 0 and message["type"] in ("auth_success", "notification"):
                    # What was received before the answer is confirmed by then.
                    await socket.send(json.dumps({"type": "echo", "id": "bye", "data": GOODBYE}))
            code, reason = socket.close_code, socket.close_reason
        except ConnectionClosed:
            code, reason = socket.close_code, socket.close_reason
        deflate = any(extension.name == "permessage-deflate" for extension in socket.protocol.extensions)
        print(json.dumps({"closed": code, "reason": reason, "deflate": deflate}), flush=True)


asyncio.run(asyncio.wait_for(main(), PATIENCE_SECONDS))
