"""Clients and workers without a mesh: what libzmq is told, and what callers are told."""

import gc
import threading

import pytest
from mesh import until

import zex
from zex import wire, worker
from zex.errors import Code, Malformed


@pytest.mark.parametrize("make", [zex.Client, zex.Worker])
def test_cut_connections_are_found_by_tcp_and_never_by_zmtp_heartbeats(make):
    # With a heartbeat of ZMTP libzmq may abort the process, ours or (by the TTL) a pipe's.
    end = make("tcp://127.0.0.1:1")
    try:
        for dealer in end._sockets:
            assert dealer.heartbeat_ivl == 0
            assert dealer.heartbeat_ttl == 0
            assert dealer.tcp_keepalive == 1
            found_after_s = dealer.tcp_keepalive_idle
            found_after_s += dealer.tcp_keepalive_intvl * dealer.tcp_keepalive_cnt
            assert found_after_s == 5
    finally:
        end._close()


def test_at_its_deadline_a_call_that_nobody_ever_had_says_so():
    with zex.Client("tcp://127.0.0.1:1") as client:
        for wait, code in [(False, Code.UNAVAILABLE), (True, Code.DEADLINE_EXCEEDED)]:
            with pytest.raises(zex.Error, match="no in pipe answers at tcp://127.0.0.1:1") as caught:
                client.call("test.Nobody", "M", b"", 0.3, wait=wait)
            assert caught.value.code == code


@pytest.mark.parametrize("leave", ["unread", "begun", "closed", "broken"])
def test_a_stream_that_is_left_takes_its_call_back(leave):
    with zex.Client("tcp://127.0.0.1:1") as client:
        stream = client.stream("test.Nobody", "M", wait=True)
        until(lambda: client._calls, 10, "the call is not underway")
        (pending,) = client._calls.values()
        if leave == "broken":
            pending.reader.put(b"\xff\0\0\0")
            with pytest.raises(zex.Error) as caught:
                next(stream)
            assert caught.value.code == Code.DATA_LOSS
        else:
            if leave == "begun":
                pending.reader.put(b"\0\0\0\1a\0")
                assert next(stream) == b"a"
            if leave == "closed":
                stream.close()
            else:
                del stream
                gc.collect()
        until(lambda: not client._calls, 10, "the call goes on")


def test_a_stream_that_only_its_loop_holds_goes_on():
    with zex.Client("tcp://127.0.0.1:1") as client:
        messages = iter(client.stream("test.Nobody", "M", wait=True))
        gc.collect()
        looked = threading.Event()
        client._post(looked.set)  # Behind a cancel, if there is one.
        assert looked.wait(10)
        (pending,) = client._calls.values()
        pending.reader.put(b"\0\0\0\1a")
        pending.reader.end(None)
        assert list(messages) == [b"a"]


def test_a_worker_serves_a_bounded_number_of_services():
    end = zex.Worker("tcp://127.0.0.1:1")
    try:
        for number in range(wire.MAX_SERVICES):
            end.method(f"test.S{number}", "M")(lambda request, context: request)
        end.serve("test.S0", lambda method, request, context: request)
        with pytest.raises(Malformed, match="at most 1024 services, not 1025"):
            end.serve("test.More", lambda method, request, context: request)
        with pytest.raises(Malformed, match="at most 1024 services, not 1025"):
            end.method("test.More", "M")
    finally:
        end._close()


def test_replies_that_could_not_be_sent_are_kept_within_bytes_too():
    end = zex.Worker("tcp://127.0.0.1:1")
    try:
        to, body = worker.To(7, 1, bytes(40)), bytes(wire.MAX_BODY_BYTES)
        for number in range(6):
            reply = wire.Reply(to.address, bytes([number] * 16), 0, "", 0)
            end._keep(0, to, wire.Packet(reply, wire.Steer.owner(7), body), float("inf"))
        assert (len(end._retries), end.dropped) == (4, 2)
    finally:
        end._close()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((b"a.B", "M"), {}, TypeError, "a service name is text, not bytes"),
        (("a.B", b"M"), {}, TypeError, "a method name is text, not bytes"),
        (("a.B", None), {}, TypeError, "a method name is text, not NoneType"),
        (("a.B", "M", "text"), {}, TypeError, "a request is bytes .* not str"),
        (("a.B", "M", b"", "5"), {}, TypeError, "deadline_s is a number, not str"),
        (("a.B", "M", b"", float("inf")), {}, ValueError, "deadline_s is a finite number"),
        (("a.B", "M", b"", float("-inf")), {}, ValueError, "deadline_s is a finite number"),
        (("a.B", "M", b"", float("nan")), {}, ValueError, "deadline_s is a finite number"),
        (("a.B", "M", b"", 10**400), {}, ValueError, "deadline_s is a finite number"),
        (("a.B", "M"), {"key": bytearray(16)}, TypeError, "a key is 16 bytes, not bytearray"),
        (("a.B", "M"), {"key": "k" * 16}, TypeError, "a key is 16 bytes, not str"),
        (("a.B", "M"), {"key": b""}, ValueError, "a key has 16 bytes, not 0"),
    ],
)
def test_wrong_arguments_are_told_their_caller_and_do_no_harm(arguments, options, error, words):
    with zex.Client("tcp://127.0.0.1:1") as client:
        for begin in (client.call, client.submit, client.stream):
            with pytest.raises(error, match=words):
                begin(*arguments, **options)
        assert client._waiting_calls == 0
        # Its thread lives, and calls go their way.
        with pytest.raises(zex.Error, match="no in pipe answers"):
            client.call("test.Nobody", "M", b"", 0.1)


def test_names_that_are_no_text_are_told_who_registers_them():
    end = zex.Worker("tcp://127.0.0.1:1")
    try:
        with pytest.raises(TypeError, match="a service name is text, not bytes"):
            end.method(b"test.S", "M")
        with pytest.raises(TypeError, match="a method name is text, not bytes"):
            end.method("test.S", b"M")
        with pytest.raises(ValueError, match="zex.Mesh is served by the brokers"):
            end.serve("zex.Mesh", lambda method, request, context: request)
        with pytest.raises(TypeError, match="a service name is text, not bytes"):
            end.serve(b"test.S", lambda method, request, context: request)
    finally:
        end._close()


def test_an_error_takes_what_a_handler_has_at_hand():
    error = zex.Error(5, KeyError("user 17"))
    assert (error.code, error.message) == (Code.NOT_FOUND, "'user 17'")
    assert zex.Error(Code.ABORTED, "x", bytearray(b"d")).details == b"d"
    with pytest.raises(TypeError, match="the details of an error are bytes, not str"):
        zex.Error(Code.ABORTED, "x", "details")
