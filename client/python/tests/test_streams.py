"""The two ends of a stream, joined without a network: all messages come out, within the credit."""

import threading
import time

import pytest

from zex import wire
from zex.errors import Code, Error
from zex.streams import Reader, Receiver, Sender, chunk_cost

OWNER = 7
SOON = 30.0


def test_all_messages_come_out_whatever_their_size():
    # Around every border: the empty message, the length that is cut, the whole chunk, the window.
    chunk = wire.MAX_CHUNK_BYTES
    sizes = [0, 1, 3, chunk - 5, chunk, 1, 3 * chunk, 700_000, 9, 2 * wire.INITIAL_CREDIT_BYTES, 0]
    sender, reader = Sender(), Reader()
    receiver = Receiver(OWNER, time.monotonic())
    deadline = time.monotonic() + SOON
    done = threading.Event()

    def handler():
        for number, size in enumerate(sizes):
            sender.push(bytes([number]) * size, deadline)
        done.set()

    threading.Thread(target=handler, daemon=True).start()
    got, granted, sent, spent, ended, number = [], wire.INITIAL_CREDIT_BYTES, 0, 0, False, 0
    while not ended:
        assert time.monotonic() < deadline
        over = done.is_set()
        part = sender.take()
        if part:
            assert len(part) <= chunk
            number, sent, spent = number + 1, sent + len(part), spent + chunk_cost(len(part))
            assert spent <= granted
            assert receiver.chunk(time.monotonic(), OWNER, number, len(part))
            reader.put(part)
        elif over and sender.empty:
            reader.end(None)
        if part or (over and sender.empty):
            messages, size, ended = reader.get(deadline)
            got += messages
            receiver.consumed(size)
            granted = max(granted, receiver.grant())
            sender.credit(granted)
    assert [len(message) for message in got] == sizes
    assert all(set(message) <= {number} for number, message in enumerate(got))
    assert sent == sum(size + 4 for size in sizes)


def test_a_handler_waits_for_credit_and_no_longer_than_its_deadline():
    sender = Sender()
    sender.push(bytes(3 * wire.INITIAL_CREDIT_BYTES), time.monotonic() + SOON)
    with pytest.raises(Error) as caught:
        sender.push(b"x", time.monotonic() + 0.05)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    costs = sum(chunk_cost(len(part)) for part in iter(sender.take, b""))
    assert 0 <= wire.INITIAL_CREDIT_BYTES - costs < wire.MIN_CHUNK_COST_BYTES
    sender.break_(Error(Code.CANCELLED, "nobody reads"))
    with pytest.raises(Error) as caught:
        sender.push(b"x", time.monotonic() + SOON)
    assert caught.value.code == Code.CANCELLED


def test_a_chunk_that_was_not_sent_is_the_next_again():
    sender = Sender()
    sender.push(b"one", time.monotonic() + SOON)
    part = sender.take()
    sender.push(b"two", time.monotonic() + SOON)
    sender.give_back(part)
    assert sender.take() == b"\0\0\0\3one\0\0\0\3two"


def test_gaps_and_moves_end_a_stream():
    # (number, size, owner) one after another, and what each is.
    table = [
        ((0, 0, OWNER), False),
        ((1, 10, OWNER), True),
        ((1, 10, OWNER), False),
        ((1, 0, OWNER), False),
        ((2, 10, OWNER + 1), Code.UNAVAILABLE),
        ((2, 10, OWNER), True),
        ((3, 0, OWNER), Code.UNAVAILABLE),
        ((4, 10, OWNER), Code.UNAVAILABLE),
        ((3, wire.INITIAL_CREDIT_BYTES - 2 * chunk_cost(10), OWNER), True),
        ((4, 1, OWNER), Code.RESOURCE_EXHAUSTED),
    ]
    receiver = Receiver(OWNER, 0.0)
    for (number, size, owner), expected in table:
        try:
            got = receiver.chunk(1.0, owner, number, size)
        except Error as error:
            got = error.code
        assert got == expected, (number, size)


def test_a_reader_tells_the_end_after_what_came_before_it():
    reader = Reader()
    reader.put(b"\0\0\0\1a")
    reader.end(Error(Code.ABORTED, "enough"))
    assert reader.get(time.monotonic() + SOON) == ([b"a"], chunk_cost(5), False)
    with pytest.raises(Error) as caught:
        reader.get(time.monotonic() + SOON)
    assert caught.value.code == Code.ABORTED


@pytest.mark.parametrize("chunk", [b"\0\0\0\2a", b"\0\0", b"\xff\0\0\0"])
def test_a_cut_or_overlong_message_is_an_error(chunk):
    reader = Reader()
    reader.put(chunk)
    reader.end(None)
    with pytest.raises(Error) as caught:
        reader.get(time.monotonic() + SOON)
    assert caught.value.code == Code.DATA_LOSS


def test_the_last_message_may_come_with_the_reply():
    reader = Reader()
    reader.end(None, b"last")
    assert reader.get(time.monotonic() + SOON) == ([b"last"], 0, True)
