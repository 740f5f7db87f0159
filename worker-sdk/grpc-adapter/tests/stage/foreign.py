"""A gRPC server in Python that shows all that a call can carry: metadata both ways, trailers, every
status with its details, deadlines, cancellation, TLS. Without reflection: its descriptors go into a
file.

    foreign.py DESCRIPTORS [CA CERT KEY]

Prints its port; then a line for each thing that its handlers notice. Ends with its input. Started by
tests/foreign.rs. With three more files it speaks TLS, and wants a certificate of the CA.
"""

import sys
import time
from concurrent import futures

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

NAME = "py.v1.Foreign"
KINDS = {"Echo": False, "Fail": False, "Left": False, "Hang": False, "Count": True, "Large": False}

file = descriptor_pb2.FileDescriptorProto(name="py/v1/foreign.proto", package="py.v1", syntax="proto3")
message = file.message_type.add(name="Text")
field = message.field.add(name="text", number=1)
field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
service = file.service.add(name="Foreign")
for name, streams in KINDS.items():
    service.method.add(name=name, input_type=".py.v1.Text", output_type=".py.v1.Text", server_streaming=streams)
with open(sys.argv[1], "wb") as out:
    out.write(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
pool = descriptor_pool.Default()
pool.Add(file)
# google.rpc.Status, whose package is not installed with grpcio.
rpc = descriptor_pb2.FileDescriptorProto(name="status.proto", package="google.rpc", syntax="proto3")
rpc.dependency.append("google/protobuf/any.proto")
rich = rpc.message_type.add(name="Status")
rich.field.add(name="code", number=1, type=5, label=1)
rich.field.add(name="message", number=2, type=9, label=1)
rich.field.add(name="details", number=3, type=11, label=3, type_name=".google.protobuf.Any")
pool.Add(rpc)
Status = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))
Text = message_factory.GetMessageClass(pool.FindMessageTypeByName("py.v1.Text"))


def say(*words):
    print(*words, flush=True)


def around(context):
    """The caller's metadata before the answer, and what it ends with."""
    own = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
    context.send_initial_metadata(own)
    context.set_trailing_metadata((("x-end", "over"), ("x-end-bin", b"\x00\xff")))


def echo(request, context):
    around(context)
    return request


def count(request, context):
    around(context)
    for number in range(int(request.text)):
        yield Text(text=str(number))


def fail(request, context):
    around(context)
    code = int(request.text)
    status = next(s for s in grpc.StatusCode if s.value[0] == code)
    detail = any_pb2.Any()
    detail.Pack(Text(text="because"))
    rich = Status(code=code, message=f"schön {code}", details=[detail])
    context.set_trailing_metadata((("x-end", "badly"), ("grpc-status-details-bin", rich.SerializeToString())))
    context.abort(status, rich.message)


def left(request, context):
    return Text(text=str(context.time_remaining()))


def hang(request, context):
    say("begun")
    context.add_callback(lambda: say("cancelled"))
    while context.is_active():
        time.sleep(0.01)
    return request


def large(request, context):
    return Text(text="x" * int(request.text))


codec = {"request_deserializer": Text.FromString, "response_serializer": Text.SerializeToString}
handlers = {
    name: (grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler)(
        globals()[name.lower()], **codec
    )
    for name, streams in KINDS.items()
}
size = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=20), options=size)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, handlers)])
if len(sys.argv) > 2:
    ca, certificate, key = (open(path, "rb").read() for path in sys.argv[2:5])
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    bound = server.add_secure_port("127.0.0.1:0", credentials)
else:
    bound = server.add_insecure_port("127.0.0.1:0")
server.start()
say(bound)
sys.stdin.read()
server.stop(0).wait()
