"""conf.v1.Conformance: the service that server.py and grpclib_server.py serve, so that no protoc is
needed.

    Echo, Metadata            what was asked; with the `my-` metadata as headers and trailers
    Fail                      the status that the request says: `code message`, with details
    Remaining                 seconds to the deadline
    Hang, HangOn              until it is over: one answer, or one message first and then nothing
    Begun, Ended              when the call of that name began, or heard that it is over
    Count, CountAndFail       so many messages; and DATA_LOSS
    Gather, Chat              streams of requests: one answer, or as many
    Hold, Go                  reads the first request, a name; counts the others when that name may go
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NAME = "conf.v1.Conformance"
MESSAGES_BYTES = 16 << 20
#: How long Begun and Ended wait for what they are asked for.
NOTED_S = 10
#: How long a call hangs that nobody ends.
HANG_S = 60
#: Method: whether it takes a stream, and gives one.
METHODS = {
    "Echo": (False, False),
    "Fail": (False, False),
    "Remaining": (False, False),
    "Hang": (False, False),
    "Begun": (False, False),
    "Ended": (False, False),
    "Metadata": (False, False),
    "Count": (False, True),
    "CountAndFail": (False, True),
    "HangOn": (False, True),
    "Gather": (True, False),
    "Chat": (True, True),
    "Hold": (True, False),
    "Go": (False, False),
}

file = descriptor_pb2.FileDescriptorProto(name="conf/v1/conformance.proto", package="conf.v1", syntax="proto3")
field = file.message_type.add(name="Data").field.add(name="data", number=1)
field.type, field.label = field.TYPE_BYTES, field.LABEL_OPTIONAL
service = file.service.add(name="Conformance")
for name, (takes_many, gives_many) in METHODS.items():
    service.method.add(
        name=name,
        input_type=".conf.v1.Data",
        output_type=".conf.v1.Data",
        client_streaming=takes_many,
        server_streaming=gives_many,
    )
pool = descriptor_pool.Default()
pool.Add(file)
Data = message_factory.GetMessageClass(pool.FindMessageTypeByName("conf.v1.Data"))
