"""A client that comes through a proxy, and claims to come from elsewhere.

client.py URL TOKEN SOURCE [CA]

Connects from the address SOURCE, trusts CA, sends no pings of its own, and prints every message on a line of its own; at
the end it prints how the connection closed. Where URL ends with `token=`, the token goes there, else into a header.
"""

import asyncio
import json
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

PATIENCE_SECONDS = 60
FORGED = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"}


async def main(url, token, source, ca=None):
    options = {"ssl": ssl.create_default_context(cafile=ca)} if ca else {}
    headers = dict(FORGED)
    if url.endswith("token="):
        url += token
    else:
        headers["Authorization"] = f"Bearer {token}"
    async with connect(
        url, additional_headers=headers, local_addr=(source, 0), ping_interval=None, proxy=None, **options
    ) as socket:
        deflate = any(extension.name == "permessage-deflate" for extension in socket.protocol.extensions)
        print(json.dumps({"opened": True, "deflate": deflate}), flush=True)
        try:
            async for message in socket:
                print(message if len(message) < 1000 else json.dumps({"long": len(message)}), flush=True)
        except ConnectionClosed:
            pass
        print(json.dumps({"closed": socket.close_code, "reason": socket.close_reason}), flush=True)


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), PATIENCE_SECONDS))
