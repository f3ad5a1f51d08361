"""A service behind the gateway in Python: clients ask it for the state of an order, and it answers.

    pip install grpcio grpcio-tools
    PUSHGATE_CLIENTS__FORWARD='["order.status"]' cargo run -- serve --dev   # in one terminal; it prints a token for alice
    python3 examples/service.py                                            # in another, or in several
    PUSHGATE_REQUEST=order.status cargo run --example client -- ws://127.0.0.1:7000/ws TOKEN   # in a third

The stubs are made when it starts, from the proto beside it. Replicas share the requests, for they name the same group.
Where the gateway is, is the first argument or PUSHGATE_GRPC (HOST:PORT, or unix:PATH); a token with the scopes `events`
and `send` is in PUSHGATE_ADMIN_TOKEN, where one is needed.
"""

import os
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.json_format import MessageToDict

# What the stubs are made of is looked for where modules are.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "proto"))
pb, rpc = grpc.protos_and_services("pushgate/v1/gateway.proto")

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PUSHGATE_GRPC", "127.0.0.1:7001")
TOKEN = os.environ.get("PUSHGATE_ADMIN_TOKEN")
METADATA = (("authorization", f"Bearer {TOKEN}"),) if TOKEN else ()


def answer(gateway, message):
    """Answers one request."""
    asked = MessageToDict(message.data)
    print(f"{message.user_id} asks for {asked}", flush=True)
    if not message.id:
        return  # the client awaits no answer
    order = asked.get("order") if isinstance(asked, dict) else None
    request = pb.SendToSessionRequest(session_id=message.session_id, reply_to=message.id)
    # Who asks is known from his token, whatever the message says.
    request.notification.data.struct_value.update({"order": order, "of": message.user_id, "state": "shipped"})
    try:
        gateway.SendToSession(request, metadata=METADATA, timeout=5)
    except grpc.RpcError as error:
        # NOT_FOUND: he left before he was answered.
        if error.code() != grpc.StatusCode.NOT_FOUND:
            print(f"{message.id} was not answered: {error.details()}", flush=True)


def serve(gateway, pool):
    """Answers what is asked, until the stream ends."""
    request = pb.StreamEventsRequest(types=["message_received"], message_types=["order.status"], group="orders")
    events = gateway.StreamEvents(request, metadata=METADATA)
    events.initial_metadata()  # comes once the gateway listens for us
    print("listening", flush=True)
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "message_received":
            pool.submit(answer, gateway, event.message_received)
        elif kind == "events_lost":
            print(f"too slow: {event.events_lost.count} requests run into their timeout", flush=True)


def main():
    # Asked now and then whether it is there still, so that a gateway that vanished is noticed.
    options = [("grpc.keepalive_time_ms", 20_000)]
    with grpc.insecure_channel(ADDRESS, options) as channel, ThreadPoolExecutor(8) as pool:
        gateway = rpc.GatewayStub(channel)
        while True:
            try:
                serve(gateway, pool)
            except grpc.RpcError as error:
                # The gateway restarts, or is not there yet. What was asked meanwhile was told `no_service`.
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                print(f"no gateway: {error.details()}", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
