"""A gRPC service as one writes it in Python, for tests/conformance.rs: conf.v1.Conformance.

Prints its port; ends with its input. What its methods do, `conformance` says. It has reflection of the
old name only, v1alpha.
"""

import sys
import threading
import time
from concurrent import futures

import grpc
from conformance import HANG_S, MESSAGES_BYTES, NAME, NOTED_S, Data
from grpc_reflection.v1alpha import reflection

# When the requests began that hang, and when they ended, by name, on the machine's clock.
begun, ended = {}, {}
hangs = threading.Condition()


def note(name, times):
    with hangs:
        times[name] = time.monotonic()
        hangs.notify_all()


def noted(times):
    """A method that says when the name that it is given was noted; waits for it."""

    def method(request, context):
        with hangs:
            yes = hangs.wait_for(lambda: request.data in times, timeout=NOTED_S)
        return Data(data=str(times[request.data]).encode() if yes else b"no")

    return grpc.unary_unary_rpc_method_handler(method)


def fail(request, context):
    """The status that the request says: `code message`, with details."""
    code, message = request.data.decode().split(" ", 1)
    details = ("grpc-status-details-bin", b"\x08" + bytes([int(code)]))
    context.set_trailing_metadata([details, *around(context)])
    status = next(one for one in grpc.StatusCode if one.value[0] == int(code))
    context.abort(status, message)


def hang(request, context):
    """Until it is cancelled, or its deadline has passed."""
    done = threading.Event()
    context.add_callback(done.set)
    note(request.data, begun)
    done.wait(HANG_S)
    note(request.data, ended)
    return Data()


def hang_on(request, context):
    yield request
    hang(request, context)


def around(context):
    """All that came, as headers and as trailers, each under a name of its own."""
    own = [(key, value) for key, value in context.invocation_metadata() if key.startswith("my-")]
    context.send_initial_metadata([("head-" + key, value) for key, value in own])
    trailers = [("tail-" + key, value) for key, value in own]
    context.set_trailing_metadata(trailers)
    return trailers


def metadata(request, context):
    around(context)
    return request


def chat(requests, context):
    around(context)
    yield from requests


def count(request, context):
    for number in range(int(request.data)):
        yield Data(data=str(number).encode())


def count_and_fail(request, context):
    yield from count(request, context)
    context.abort(grpc.StatusCode.DATA_LOSS, "that was all")


def hold(requests, context):
    name = next(requests).data
    note(name, begun)
    with hangs:
        hangs.wait_for(lambda: name in ended, timeout=HANG_S)
    return Data(data=str(sum(1 for _ in requests)).encode())


def go(request, context):
    note(request.data, ended)
    return request


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Remaining": grpc.unary_unary_rpc_method_handler(
        lambda request, context: Data(data=str(context.time_remaining()).encode())
    ),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "HangOn": grpc.unary_stream_rpc_method_handler(hang_on),
    "Begun": noted(begun),
    "Ended": noted(ended),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "CountAndFail": grpc.unary_stream_rpc_method_handler(count_and_fail),
    "Gather": grpc.stream_unary_rpc_method_handler(
        lambda requests, context: Data(data=b" ".join(request.data for request in requests))
    ),
    "Hold": grpc.stream_unary_rpc_method_handler(hold),
    "Go": grpc.unary_unary_rpc_method_handler(go),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
codec = {"request_deserializer": Data.FromString, "response_serializer": Data.SerializeToString}
handlers = {name: handler._replace(**codec) for name, handler in METHODS.items()}
server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=32),
    options=[("grpc.max_receive_message_length", MESSAGES_BYTES), ("grpc.so_reuseport", 0)],
)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, handlers)])
reflection.enable_server_reflection([NAME, reflection.SERVICE_NAME], server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(1).wait()
