"""A gRPC service with reflection that knows nothing of Zex: test.v1.Greeter.

Its messages are made here from descriptors, so that no compiler for .proto files is needed.
Usage: greeter.py PORT (0 takes a free one); prints the port and runs until it is stopped.
"""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection

SERVICE = "test.v1.Greeter"

file = descriptor_pb2.FileDescriptorProto(name="test/v1/greeter.proto", package="test.v1", syntax="proto3")
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
UINT32 = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
for name, fields in {
    "HelloRequest": [("name", STRING)],
    "HelloReply": [("text", STRING)],
    "CountRequest": [("to", UINT32)],
    "Number": [("number", UINT32)],
}.items():
    message = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields, 1):
        message.field.add(
            name=field, number=number, type=kind, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
        )
service = file.service.add(name="Greeter")
for name, request, reply, streams in [
    ("Hello", "HelloRequest", "HelloReply", False),
    ("Count", "CountRequest", "Number", True),
    ("Gather", "HelloRequest", "HelloReply", None),
    ("Chat", "HelloRequest", "HelloReply", "both"),
]:
    service.method.add(
        name=name,
        input_type=".test.v1." + request,
        output_type=".test.v1." + reply,
        server_streaming=streams in (True, "both"),
        client_streaming=streams in (None, "both"),
    )

pool = descriptor_pool.Default()
pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.v1." + name))


HelloRequest, HelloReply = message("HelloRequest"), message("HelloReply")
CountRequest, Number = message("CountRequest"), message("Number")


def hello(request, context):
    if not request.name:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "whom shall I greet?")
    if request.name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return HelloReply(text=f"Hello, {request.name}!")


def count(request, context):
    for number in range(1, request.to + 1):
        yield Number(number=number)
    if request.to > 1000:
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "that is too far")


def gather(requests, context):
    return HelloReply(text=" ".join(request.name for request in requests))


def chat(requests, context):
    for request in requests:
        yield hello(request, context)


handlers = {
    "Hello": grpc.unary_unary_rpc_method_handler(
        hello, HelloRequest.FromString, HelloReply.SerializeToString
    ),
    "Count": grpc.unary_stream_rpc_method_handler(
        count, CountRequest.FromString, Number.SerializeToString
    ),
    "Gather": grpc.stream_unary_rpc_method_handler(
        gather, HelloRequest.FromString, HelloReply.SerializeToString
    ),
    "Chat": grpc.stream_stream_rpc_method_handler(
        chat, HelloRequest.FromString, HelloReply.SerializeToString
    ),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
port = server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
print(port, flush=True)

stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
stopped.wait()
server.stop(0).wait()
