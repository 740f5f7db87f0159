"""A shop of the tests: messages of every kind of field, stubs as generated code has them, and a
grpcio service that remembers what it was asked."""

import threading
from concurrent import futures

import google.protobuf.struct_pb2
import google.protobuf.timestamp_pb2
import google.protobuf.wrappers_pb2  # noqa: F401  The pool has what the messages import.
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection

NAME = "shop.v1.Shop"
_FILE = descriptor_pb2.FileDescriptorProto(
    name="shop/v1/shop.proto", package="shop.v1", syntax="proto3"
)
_FILE.dependency.extend(
    f"google/protobuf/{name}.proto" for name in ("timestamp", "struct", "wrappers")
)


def _message(name, *fields):
    message = _FILE.message_type.add(name=name)
    for number, field in enumerate(fields, 1):
        name, kind = field.split(":")
        made = message.field.add(name=name, number=number, label=3 if kind.startswith("*") else 1)
        kind = kind.lstrip("*")
        if kind.startswith("."):
            made.type_name, made.type = kind, 14 if kind.endswith("Plan") else 11
        else:
            made.type = getattr(made, f"TYPE_{kind.upper()}")
    return message


_PLAN = _FILE.enum_type.add(name="Plan")
for _number, _name in enumerate(("FREE", "TEAM", "ENTERPRISE")):
    _PLAN.value.add(name=_name, number=_number)
_message("Address", "street:.shop.v1.Street", "city:string")
_message("Street", "name:string", "number:uint32")
_message("Flag", "on:bool")
_message("Ask", "limit:int64", "text:string")
_user = _message(
    "User", "id:uint64", "name:string", "admin:bool", "score:double", "rating:float", "plan:.shop.v1.Plan",
    "address:.shop.v1.Address", "tags:*string", "friends:*int32", "addresses:*.shop.v1.Address",
    "joined:.google.protobuf.Timestamp", "nick:.google.protobuf.StringValue", "more:.google.protobuf.Struct",
    "picture:bytes", "flag:.shop.v1.Flag", "labels:*.shop.v1.User.LabelsEntry", "size:sint32",
)  # fmt: skip
_entry = _user.nested_type.add(name="LabelsEntry")
_entry.field.add(name="key", number=1, type=9, label=1)
_entry.field.add(name="value", number=2, type=9, label=1)
_entry.options.map_entry = True
_service = _FILE.service.add(name="Shop")
METHODS = {
    "List": "unary_stream",
    "Get": "unary_unary",
    "Put": "unary_unary",
    "Gather": "stream_unary",
}
for _name, _kind in METHODS.items():
    _takes = ".shop.v1.Ask" if _name in ("List", "Get") else ".shop.v1.User"
    _service.method.add(
        name=_name, input_type=_takes, output_type=".shop.v1.User",
        server_streaming=_kind.endswith("stream"), client_streaming=_kind.startswith("stream"),
    )  # fmt: skip
_pool = descriptor_pool.Default()
_pool.Add(_FILE)
User, Ask, Address, Street, Flag = (
    message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"shop.v1.{name}"))
    for name in ("User", "Ask", "Address", "Street", "Flag")
)


class ShopStub:
    """As protoc's plugin for Python writes it."""

    def __init__(self, channel):
        for name, kind in METHODS.items():
            takes = Ask if name in ("List", "Get") else User
            path = f"/{NAME}/{name}"
            made = getattr(channel, kind)(
                path, request_serializer=takes.SerializeToString, response_deserializer=User.FromString,
                _registered_method=True,
            )  # fmt: skip
            setattr(self, name, made)


def user(number):
    """The user of a number, with something in every field."""
    made = User(
        id=(1 << 63) + number, name=f"Näme {number}", admin=number % 2 == 1, score=number / 8, rating=0.25,
        plan=number % 3, tags=[f"a{number}", "b"], friends=[-number, 7], size=-number, picture=bytes([0, number]),
        address=Address(city="Łódź", street=Street(name="Main {{ street }}", number=number)),
        addresses=[Address(city="A"), Address(city=f"B{number}")], flag=Flag(on=True), labels={"k": f"v{number}"},
    )  # fmt: skip
    made.joined.FromJsonString(f"2026-01-02T03:04:{number:02}Z")
    made.nick.value = f"nick{number}"
    made.more.update({"a": number, "b": ["x"]})
    return made


class Shop:
    """The service; `puts` is what it was given."""

    def __init__(self):
        self.puts, self._lock = [], threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        handlers = {
            name: getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, f"_{name.lower()}"), request_deserializer=(Ask if name in ("List", "Get") else User).FromString,
                response_serializer=User.SerializeToString,
            )
            for name, kind in METHODS.items()
        }  # fmt: skip
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(NAME, handlers)]
        )
        reflection.enable_server_reflection([NAME, reflection.SERVICE_NAME], self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def taken(self):
        """What was put since the last time, in an order that does not depend on when."""
        with self._lock:
            puts, self.puts = self.puts, []
        return sorted((put.SerializeToString(deterministic=True) for put in puts))

    def _list(self, request, context):
        yield from (user(number) for number in range(request.limit))

    def _get(self, request, context):
        return user(request.limit)

    def _put(self, request, context):
        with self._lock:
            self.puts.append(request)
        if request.name == "fail":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such name")
        return request

    def _gather(self, requests, context):
        return User(tags=[request.name for request in requests])
