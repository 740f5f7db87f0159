"""A gRPC client that knows test.v1.Greeter by reflection alone: caller.py ADDRESS."""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TIMEOUT_S = 20

with grpc.insecure_channel(sys.argv[1]) as channel:
    seen = ProtoReflectionDescriptorDatabase(channel)
    services = set(seen.get_services())
    assert {"test.v1.Greeter", "zex.Pipelines", "zex.Mesh"} <= services, services
    greeter = descriptor_pool.DescriptorPool(seen).FindServiceByName("test.v1.Greeter")

    def call(name, text, make):
        method = greeter.FindMethodByName(name)
        request = message_factory.GetMessageClass(method.input_type)()
        setattr(request, request.DESCRIPTOR.fields[0].name, text)
        reply = message_factory.GetMessageClass(method.output_type)
        stub = make(
            f"/test.v1.Greeter/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return stub(request, timeout=TIMEOUT_S)

    assert call("Hello", "Ada", channel.unary_unary).text == "Hello, Ada!"
    assert [one.number for one in call("Count", 3, channel.unary_stream)] == [1, 2, 3]
    try:
        call("Hello", "", channel.unary_unary)
        raise AssertionError("an empty name is refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "whom shall I greet?", error
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "test.v1.Greeter"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
