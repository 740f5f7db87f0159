"""What a worker remembers of keys: for how long, within which bounds, and whom it refuses."""

import pytest

from zex.keys import Answered, Memory

A, B = 1, 2


def key(number):
    return bytes([number]) * 16


def answer(size):
    return Answered(0, "", 0, bytes(size))


def run(memory, now, number, size=0):
    memory.begin(key(number), object())
    assert memory.ask(now, key(number), 1, A, 0) is True
    memory.end(now, key(number), answer(size))


@pytest.mark.parametrize(
    ("attempt", "owner", "refused"),
    [(0, A, False), (2, A, False), (0, B, True), (2, B, True), (3, B, False)],
)
def test_a_denied_key_is_refused_to_others_up_to_its_attempt(attempt, owner, refused):
    memory = Memory()
    assert memory.ask(0.0, key(1), 2, A, 0) is False
    # A lower attempt that asks late changes nothing.
    assert memory.ask(0.0, key(1), 1, B, 0) is None
    assert memory.refuses(key(1), owner, 1, attempt) == refused
    memory.expire(60.0)
    assert not memory.refuses(key(1), owner, 1, attempt)


def test_work_that_was_underway_when_its_owner_asked_does_not_begin():
    memory = Memory()
    assert memory.ask(0.0, key(1), 0, A, 7) is False
    # Overtaken by the question, by another pipe: its owner has given it to somebody else. Which
    # attempt it is does not matter.
    assert memory.refuses(key(1), A, 7, 0)
    assert memory.refuses(key(1), A, 7, 1)
    # What its owner sends after the answer.
    assert not memory.refuses(key(1), A, 8, 0)
    # A question of before that comes late takes nothing back.
    assert memory.ask(0.0, key(1), 0, A, 3) is False
    assert memory.refuses(key(1), A, 7, 0)


def test_answers_are_kept_for_their_time():
    memory = Memory()
    run(memory, 0.0, 1)
    memory.expire(59.9)
    assert memory.answer(key(1)) == (True, answer(0))
    memory.expire(60.0)
    assert memory.answer(key(1)) == (False, None)


def test_beyond_the_bytes_only_the_keys_are_kept():
    memory = Memory(answer_bytes=3_500)
    for number in (1, 2, 3):
        run(memory, float(number), number, 1_000)
    assert memory.answer(key(1)) == (True, None)
    assert memory.ask(3.0, key(1), 1, A, 0) is True
    assert memory.answer(key(3)) == (True, answer(1_000))
    memory.expire(61.0)
    assert memory.answer(key(1)) == (False, None)
    assert memory.answer(key(2)) == (True, answer(1_000))
    memory.expire(70.0)
    assert (memory._bytes, len(memory._answers), len(memory._keeping)) == (0, 0, 0)


def test_who_forgot_a_key_early_does_not_deny_it():
    memory = Memory(keys=2)
    for number in (1, 2, 3):
        run(memory, float(number), number)
    assert memory.ask(10.0, key(1), 1, A, 0) is None
    assert memory.ask(10.0, key(3), 1, A, 0) is True
    memory.expire(61.0)
    assert memory.ask(61.0, key(1), 1, A, 0) is False


def test_denials_are_bounded():
    memory = Memory(denials=2)
    assert [memory.ask(0.0, key(n), 1, A, 0) for n in (1, 2, 3)] == [False, False, None]
