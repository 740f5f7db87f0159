"""A gRPC service as one writes it in Python, for tests/grpcio.rs: conf.v1.Conformance.

Prints its port; ends with its input. What its methods do, `METHODS` says. The descriptors are made
here, so that no protoc is needed.
"""

import sys
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection

NAME = "conf.v1.Conformance"
MESSAGES_BYTES = 16 << 20

file = descriptor_pb2.FileDescriptorProto(name="conf/v1/conformance.proto", package="conf.v1", syntax="proto3")
field = file.message_type.add(name="Data").field.add(name="data", number=1)
field.type, field.label = field.TYPE_BYTES, field.LABEL_OPTIONAL
service = file.service.add(name="Conformance")


def method(name, takes_many=False, gives_many=False):
    service.method.add(
        name=name,
        input_type=".conf.v1.Data",
        output_type=".conf.v1.Data",
        client_streaming=takes_many,
        server_streaming=gives_many,
    )


for name in ("Echo", "Fail", "Remaining", "Hang", "Hung", "Metadata"):
    method(name)
method("Count", gives_many=True)
method("CountAndFail", gives_many=True)
method("Gather", takes_many=True)
method("Chat", takes_many=True, gives_many=True)
pool = descriptor_pool.Default()
pool.Add(file)
Data = message_factory.GetMessageClass(pool.FindMessageTypeByName("conf.v1.Data"))

hung = threading.Event()


def fail(request, context):
    """The status that the request says: `code message`, with details."""
    code, message = request.data.decode().split(" ", 1)
    context.set_trailing_metadata((("grpc-status-details-bin", b"\x08" + bytes([int(code)])),))
    status = next(one for one in grpc.StatusCode if one.value[0] == int(code))
    context.abort(status, message)


def hang(request, context):
    """Until it is cancelled."""
    done = threading.Event()
    context.add_callback(done.set)
    done.wait(60)
    hung.set()
    return Data()


def metadata(request, context):
    """All that came, as headers and as trailers, each under a name of its own."""
    own = [(key, value) for key, value in context.invocation_metadata() if key.startswith("my-")]
    context.send_initial_metadata([("head-" + key, value) for key, value in own])
    context.set_trailing_metadata([("tail-" + key, value) for key, value in own])
    return request


def count(request, context):
    for number in range(int(request.data)):
        yield Data(data=str(number).encode())


def count_and_fail(request, context):
    yield from count(request, context)
    context.abort(grpc.StatusCode.DATA_LOSS, "that was all")


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Remaining": grpc.unary_unary_rpc_method_handler(
        lambda request, context: Data(data=str(context.time_remaining()).encode())
    ),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "Hung": grpc.unary_unary_rpc_method_handler(
        lambda request, context: Data(data=b"yes" if hung.wait(10) else b"no")
    ),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "CountAndFail": grpc.unary_stream_rpc_method_handler(count_and_fail),
    "Gather": grpc.stream_unary_rpc_method_handler(
        lambda requests, context: Data(data=b" ".join(request.data for request in requests))
    ),
    "Chat": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
}
codec = {"request_deserializer": Data.FromString, "response_serializer": Data.SerializeToString}
handlers = {name: handler._replace(**codec) for name, handler in METHODS.items()}
server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=16),
    options=[("grpc.max_receive_message_length", MESSAGES_BYTES), ("grpc.so_reuseport", 0)],
)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, handlers)])
reflection.enable_server_reflection([NAME, reflection.SERVICE_NAME], server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(1).wait()
