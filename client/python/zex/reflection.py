"""Calls with messages that are built from the descriptors which the service itself hands out.

    Reflection ── zex.Descriptors ──▶ any worker of the service: its FileDescriptorSet
        └── call("pkg.Service", "Method", {"id": 17}) ──▶ a message of the reply's type

No generated code is needed. Needs the package `protobuf`, which nothing else in `zex` does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Type, Union

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from .calls import Stream
from .client import Client
from .errors import Code, Error
from .wire import DESCRIPTORS_METHOD

Request = Union[Message, Mapping[str, Any], None]


class Reflection:
    """Makes calls by name and with plain values, over a `Client` that it does not own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._services: Dict[str, ServiceDescriptor] = {}

    def service(
        self, service: str, deadline_s: float = 30.0, wait: bool = False
    ) -> ServiceDescriptor:
        """The descriptor of a service, fetched from one of its workers: once, and again when the
        service no longer fits it."""
        descriptor = self._services.get(service)
        if descriptor is None:
            reply = self._client.call(
                service, DESCRIPTORS_METHOD, b"", deadline_s, idempotent=True, wait=wait
            )
            files = descriptor_pb2.FileDescriptorSet.FromString(reply)
            # A pool for each service: two services may bring different versions of one file.
            pool = descriptor_pool.DescriptorPool()
            for file in _dependencies_first(list(files.file)):
                pool.Add(file)
            try:
                descriptor = self._services[service] = pool.FindServiceByName(service)
            except KeyError:
                text = f"the descriptors that {service} hands out do not have it"
                raise Error(Code.INTERNAL, text) from None
        return descriptor

    def method(self, service: str, method: str, **options: Any) -> MethodDescriptor:
        """The descriptor of a method."""
        descriptor = self.service(service, **options)
        if method not in descriptor.methods_by_name:
            known = ", ".join(sorted(descriptor.methods_by_name))
            raise Error(Code.UNIMPLEMENTED, f"{service} has no method {method}; it has {known}")
        return descriptor.methods_by_name[method]

    def call(
        self,
        service: str,
        method: str,
        request: Request = None,
        deadline_s: float = 30.0,
        **options: Any,
    ) -> Message:
        """As `Client.call`; the request is a message, or a mapping as JSON has it."""
        message, reply_type = self._prepare(service, method, request, deadline_s, options)
        with self._kept_while_it_fits(service):
            reply: Message = self._client.call(
                service, method, message, deadline_s, reply_type=reply_type, **options
            )
        return reply

    def stream(
        self,
        service: str,
        method: str,
        request: Request = None,
        deadline_s: float = 30.0,
        **options: Any,
    ) -> "Messages":
        """As `Client.stream`; the request is a message, or a mapping as JSON has it."""
        message, reply_type = self._prepare(service, method, request, deadline_s, options)
        stream = self._client.stream(
            service, method, message, deadline_s, reply_type=reply_type, **options
        )
        return Messages(self, service, stream)

    def _prepare(
        self,
        service: str,
        method: str,
        request: Request,
        deadline_s: float,
        options: Mapping[str, Any],
    ) -> Tuple[Message, Type[Message]]:
        """The request as a message, and the type of the reply."""
        known, wait = service in self._services, options.get("wait", False)
        try:
            descriptor = self.method(service, method, deadline_s=deadline_s, wait=wait)
            return _message(descriptor, request), _class(descriptor.output_type)
        except Error:
            if not known or self._services.pop(service, None) is None:
                raise
        # What was fetched long ago may not have what the caller knows of: the service has it now,
        # or the error stands.
        descriptor = self.method(service, method, deadline_s=deadline_s, wait=wait)
        return _message(descriptor, request), _class(descriptor.output_type)

    @contextmanager
    def _kept_while_it_fits(self, service: str) -> Iterator[None]:
        """Forgets the descriptor of a service whose call shows that it is another by now."""
        try:
            yield
        except (Error, DecodeError) as error:
            if isinstance(error, DecodeError) or error.code == Code.UNIMPLEMENTED:
                self._services.pop(service, None)
            raise


class Messages:
    """A `Stream` of messages, which see to it that the descriptors fit."""

    def __init__(self, reflection: Reflection, service: str, stream: Stream) -> None:
        self._reflection, self._service, self._stream = reflection, service, stream

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        with self._reflection._kept_while_it_fits(self._service):
            message: Message = next(self._stream)
            return message

    def close(self) -> None:
        """Takes the call back, if it has not ended."""
        self._stream.close()

    def __enter__(self) -> "Messages":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _class(descriptor: Any) -> Type[Message]:
    made: Type[Message] = message_factory.GetMessageClass(descriptor)
    return made


def _message(method: MethodDescriptor, request: Request) -> Message:
    if isinstance(request, Message):
        return request
    try:
        return json_format.ParseDict(dict(request or {}), _class(method.input_type)())
    except json_format.ParseError as error:
        name = f"{method.containing_service.full_name}/{method.name}"
        raise Error(Code.INVALID_ARGUMENT, f"the request of {name}: {error}") from None


def _dependencies_first(
    files: List[descriptor_pb2.FileDescriptorProto],
) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """The files of a set in an order in which a pool takes them."""
    waiting = {file.name: file for file in files}

    def take(name: str) -> Iterator[descriptor_pb2.FileDescriptorProto]:
        file: Optional[descriptor_pb2.FileDescriptorProto] = waiting.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                yield from take(dependency)
            yield file

    for file in files:
        yield from take(file.name)
