"""Looks into a page of a running Chromium, by its DevTools protocol.

page.py PORT until EXPRESSION   waits until it is true on the page
page.py PORT run EXPRESSION     evaluates it, as a click of the user would, and prints its value
page.py PORT shot FILE [dark]   takes a picture
"""

import asyncio
import base64
import contextlib
import json
import sys
import urllib.request

from websockets.asyncio.client import connect

PATIENCE_SECONDS = 30


class Page:
    def __init__(self, socket):
        self.socket, self.number = socket, 0

    async def ask(self, method, **parameters):
        self.number += 1
        await self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        async for message in self.socket:
            answer = json.loads(message)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    async def evaluate(self, expression):
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")


async def main(port, what, argument, *more):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as pages:
        page = next(page for page in json.load(pages) if page["type"] == "page")
    async with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
        page = Page(socket)
        if what == "until":
            for _ in range(PATIENCE_SECONDS * 10):
                # There may be no page yet.
                with contextlib.suppress(RuntimeError):
                    if await page.evaluate(argument):
                        return
                await asyncio.sleep(0.1)
            sys.exit(f"never so: {argument}\n{await page.evaluate('document.body.innerText')}")
        elif what == "run":
            print(json.dumps(await page.evaluate(argument)))
        elif what == "shot":
            scheme = "dark" if more else "light"
            await page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            picture = await page.ask("Page.captureScreenshot")
            with open(argument, "wb") as file:
                file.write(base64.b64decode(picture["data"]))


asyncio.run(main(*sys.argv[1:]))
