"""The chat of examples/chat as its page plays it: two people, a room, and the service behind it.

    chat.py PAGE_URL   (http://127.0.0.1:PORT)
"""

import asyncio
import json
import struct
import sys
import urllib.request

import websockets

PAGE = sys.argv[1]
PATIENCE_S = 20


class Person:
    """One window of the page."""

    def __init__(self, name, device="browser"):
        self.name, self.device, self.came = name, device, []

    async def __aenter__(self):
        with urllib.request.urlopen(f"{PAGE}/token?user={self.name}") as answer:
            login = json.load(answer)
        url = f"{login['url']}?binary=1&device={self.device}"
        protocols = ["pushgate.v1.json", f"bearer.{login['token']}"]
        self.socket = await websockets.connect(url, subprotocols=protocols)
        await self.hears(type="auth_success")
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def says(self, **message):
        await self.socket.send(json.dumps(message))

    async def hears(self, **wanted):
        """The first message that has all of this, and was not asked for before."""

        def fits(message):
            return all(message.get(key) == value for key, value in wanted.items())

        async with asyncio.timeout(PATIENCE_S):
            while True:
                for message in self.came:
                    if fits(message):
                        self.came.remove(message)
                        return message
                data = await self.socket.recv()
                if isinstance(data, bytes):
                    (length,) = struct.unpack_from(">I", data)
                    message = json.loads(data[4 : 4 + length])
                    message["bytes"] = data[4 + length :]
                else:
                    message = json.loads(data)
                self.came.append(message)


async def chat():
    room = "room.lobby"
    async with Person("Ann") as ann:
        await ann.says(type="join_room", roomId=room)
        await ann.hears(type="subscribed", topic=room)
        async with Person("Bob") as bob:
            await bob.says(type="join_room", roomId=room)
            await bob.hears(type="subscribed", topic=room)
            joined = await ann.hears(type="user_joined", userId="bob")
            assert joined["claims"] == {"name": "Bob"}, joined
            await bob.says(type="user_list", topic=room)
            there = await bob.hears(type="user_list", topic=room)
            assert sorted(user["userId"] for user in there["users"]) == ["ann", "bob"], there

            await bob.says(type="typing", topic=room)
            await ann.hears(type="typing", fromUserId="bob", topic=room)
            await bob.says(type="publish", topic=room, kind="chat", data={"text": "hello"})
            said = await ann.hears(type="publish", kind="chat", fromUserId="bob", topic=room)
            assert said["data"] == {"text": "hello"}, said

            content = bytes(range(256)) * 100
            await bob.says(type="publish", topic=room, kind="file.start", data={"fileId": "f", "name": "a.bin"})
            envelope = json.dumps({"type": "publish", "topic": room, "kind": "file.chunk"}).encode()
            await bob.socket.send(struct.pack(">I", len(envelope)) + envelope + content)
            await bob.says(type="publish", topic=room, kind="file.end", data={"fileId": "f"})
            await ann.hears(type="publish", kind="file.start")
            chunk = await ann.hears(type="publish", kind="file.chunk", fromUserId="bob")
            assert chunk["bytes"] == content, "the bytes came otherwise"
            await ann.hears(type="publish", kind="file.end")

            await bob.says(type="chat.roll", id="r1", data={"dice": "3d6"})
            reply = await bob.hears(type="reply", replyTo="r1")
            assert len(reply["data"]["dice"]) == 3 and sum(reply["data"]["dice"]) == reply["data"]["sum"], reply
            await bob.says(type="order.status", id="o1", data={"order": 12})
            reply = await bob.hears(type="reply", replyTo="o1")
            assert reply["data"] == {"order": 12, "of": "bob", "state": "shipped"}, reply
        await ann.hears(type="user_left", userId="bob")
        await ann.says(type="message", to="bob", kind="chat", data={"text": "come back"})
        await ann.says(type="ping", id="p")
        await ann.hears(type="pong", replyTo="p")
        assert not [message for message in ann.came if message["type"] == "error"], ann.came
        async with Person("Bob") as bob:
            waited = await bob.hears(type="message", fromUserId="ann", kind="chat")
            assert waited["data"] == {"text": "come back"} and waited["replayed"] is True, waited
            await bob.says(type="publish", topic="other", kind="chat", data={})
            await bob.hears(type="error", code="forbidden")
    print("a chat with rooms, presence, typing, files, a service and a message for who was away")


asyncio.run(chat())
