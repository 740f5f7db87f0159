"""Clients and workers without a mesh: what libzmq is told, and what callers are told."""

import pytest

import zex
from zex.errors import Code


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
