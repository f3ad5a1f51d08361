"""Connects as a client again and again, and counts what became of it: `connects.py HOST PORT PATH TOKEN STOP_FILE`.

A connection after the other, until STOP_FILE is there: a WebSocket handshake each, its answer waited for, then closed. Printed
at the end, as JSON: `opened` (101), `turned_away` (another answer, by its status), `broken` (accepted, then ended without an
answer: the daemon went while it was asked), `refused` (nobody listened: what must not happen), `slowest_seconds` of those
that were opened. Two connections are open at a time, so that some are always on their way.
"""

import base64
import collections
import json
import os
import socket
import sys
import threading
import time


def connect(address, request, count, slowest):
    started = time.monotonic()
    try:
        connection = socket.create_connection(address, timeout=60)
    except OSError as error:
        count[f"refused: {error}"] += 1
        count["refused"] += 1
        return
    with connection:
        try:
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = connection.recv(4096)
                if not more:
                    break
                answer += more
        except OSError:
            answer = b""
    status = answer[9:12].decode("latin-1")
    if status == "101":
        count["opened"] += 1
        slowest[0] = max(slowest[0], time.monotonic() - started)
    elif status:
        count[f"turned_away {status}"] += 1
    else:
        count["broken"] += 1


def main():
    host, port, path, token, stop = sys.argv[1:]
    count, slowest, lock = collections.Counter(opened=0, refused=0, broken=0), [0.0], threading.Lock()

    def work():
        mine, longest = collections.Counter(), [0.0]
        while not os.path.exists(stop):
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Connection: Upgrade", "Upgrade: websocket"]
            lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", f"Authorization: Bearer {token}"]
            connect((host, int(port)), ("\r\n".join(lines) + "\r\n\r\n").encode(), mine, longest)
            time.sleep(0.005)
        with lock:
            count.update(mine)
            slowest[0] = max(slowest[0], longest[0])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({**count, "slowest_seconds": round(slowest[0], 2)}))


main()
