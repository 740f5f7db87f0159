"""A gRPC server as one writes it in Python: grpcio, its reflection (v1alpha alone), its health.

Prints its port, then obeys the words it reads: "serving", "not-serving"; "grow" has its reflection
tell of one more service, as if another one stood behind the same address. Ends with its input.
Started by tests/grpcio.rs. The descriptors are made here, so that no protoc is needed.
"""

import sys
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

port, threads, with_health = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "health"
NAME = "py.v1.Echo"

text_file = descriptor_pb2.FileDescriptorProto(name="py/v1/text.proto", package="py.v1", syntax="proto3")
field = text_file.message_type.add(name="Text").field.add(name="text", number=1)
field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
echo_file = descriptor_pb2.FileDescriptorProto(name="py/v1/echo.proto", package="py.v1", syntax="proto3")
echo_file.dependency.append("py/v1/text.proto")
service = echo_file.service.add(name="Echo")
for name, streams in [("Say", False), ("Spell", True), ("Fail", False)]:
    service.method.add(name=name, input_type=".py.v1.Text", output_type=".py.v1.Text", server_streaming=streams)
pool = descriptor_pool.Default()
pool.Add(text_file)
pool.Add(echo_file)
Text = message_factory.GetMessageClass(pool.FindMessageTypeByName("py.v1.Text"))


def say(request, context):
    return Text(text=request.text + "!")


def spell(request, context):
    for letter in request.text:
        yield Text(text=letter)


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: " + request.text)


codec = {"request_deserializer": Text.FromString, "response_serializer": Text.SerializeToString}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=threads), options=[("grpc.so_reuseport", 0)])
server.add_generic_rpc_handlers([
    grpc.method_handlers_generic_handler(NAME, {
        "Say": grpc.unary_unary_rpc_method_handler(say, **codec),
        "Spell": grpc.unary_stream_rpc_method_handler(spell, **codec),
        "Fail": grpc.unary_unary_rpc_method_handler(fail, **codec),
    })
])
names = [NAME, reflection.SERVICE_NAME]
servicer = health.HealthServicer()
if with_health:
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    names.append(health.SERVICE_NAME)
told = reflection.ReflectionServicer(names, pool)
reflection_pb2_grpc.add_ServerReflectionServicer_to_server(told, server)
bound = server.add_insecure_port("127.0.0.1:" + port)
server.start()
print(bound, flush=True)
for line in sys.stdin:
    if line.strip() == "grow":
        more = descriptor_pb2.FileDescriptorProto(name="py/v1/more.proto", package="py.v1", syntax="proto3")
        more.dependency.append("py/v1/text.proto")
        more.service.add(name="More").method.add(name="Say", input_type=".py.v1.Text", output_type=".py.v1.Text")
        pool.Add(more)
        told._service_names = (*told._service_names, "py.v1.More")
        continue
    status = {"serving": "SERVING", "not-serving": "NOT_SERVING"}[line.strip()]
    servicer.set(NAME, getattr(health_pb2.HealthCheckResponse, status))
server.stop(1).wait()
