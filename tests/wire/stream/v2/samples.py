"""One message of each type, and strategies for any."""

from typing import Any

from hypothesis import strategies as st

from plasmastream import ObjectID
from plasmastream.wire.stream.v2 import (
    Amount,
    Cancel,
    Close,
    Described,
    Drop,
    End,
    Fetch,
    Hello,
    Listed,
    ListObjects,
    Message,
    Open,
    Outcomes,
    Progress,
    Put,
    Range,
    Read,
    Sizes,
    Stat,
    Sync,
    Want,
)
from tests.wire.stream.helpers import object_id

A, B = object_id(1), object_id(2)
TOKEN = bytes(range(16))
MOST = 2**64 - 1

HELLO = Hello(b"i" * 16, 1 << 20, ("zstd", "lz4"), "somebody 2.0", b"\xffsecret")
REQUESTS: list[Message] = [
    Open(TOKEN, True, 1, (A, B)),
    Read(TOKEN, False, 2, (Range(MOST, 1 << 40, 1 << 20), Range(7, 0, 1))),
    Drop(TOKEN, (A, B)),
    Close(TOKEN, (B,)),
    Put(TOKEN, (A, B), (Sizes(2**44, 1 << 20), Sizes(0, 0))),
    Sync((Fetch(True, "fd00::1", 65_535, (A,)), Fetch(False, "host", 1, (B,))), True, 2.5, 1 << 30, 1),
    Stat((A, B)),
    ListObjects(),
]
ANSWERS: list[Message] = [
    Want((Range(1, 1 << 20, 5),)),
    Outcomes(3, 8, "damaged \N{SNOWMAN}", (0, 65_535)),
    Progress((Amount(3, 1 << 41), Amount(0, 0))),
    Listed((A, B), (Described(1, 2, 3, 4, -1), Described(0, 0, 0, 0, 0)), (b"12345678", bytes(8))),
    End(15, "busy", 1.5),
]
ONE_OF_EACH = [HELLO, *REQUESTS, Cancel(), *ANSWERS]

_u8, _u16, _u32, _u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
_i64 = st.integers(-(2**63), 2**63 - 1)
_seconds = st.floats(0, 1e9)
_token = st.binary(min_size=16, max_size=16)
IDS = st.lists(st.binary(min_size=20, max_size=20).map(ObjectID), unique=True, max_size=5).map(tuple)


def _text(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=most // 4)


def _many(cls: type, *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.builds(cls, *fields), max_size=4).map(tuple)


_ranges = _many(Range, _u64, _u64, _u64)
_fetches = st.builds(Fetch, st.booleans(), _text(255), _u16, st.just((A,)))
ANY_MESSAGE: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, _token, _u32, st.lists(_text(64), max_size=4).map(tuple), _text(256), st.binary(max_size=99)),
    st.builds(Open, _token, st.booleans(), _u8, IDS),
    st.builds(Read, _token, st.booleans(), _u8, _ranges),
    st.builds(Drop, _token, IDS),
    st.builds(Close, _token, IDS),
    st.builds(Put, _token, IDS, _many(Sizes, _u64, _u64)),
    st.builds(Sync, st.lists(_fetches, max_size=3).map(tuple), st.booleans(), _seconds, _u64, _u8),
    st.builds(Stat, IDS),
    st.just(ListObjects()),
    st.just(Cancel()),
    st.builds(Want, _ranges),
    st.builds(Outcomes, _u32, _u16, _text(400), st.lists(_u32, max_size=5).map(tuple)),
    st.builds(Progress, _many(Amount, _u64, _u64)),
    st.builds(
        Listed,
        IDS,
        _many(Described, _u64, _u64, _i64, _i64, _i64),
        st.lists(st.binary(min_size=8, max_size=8), max_size=4).map(tuple),
    ),
    st.builds(End, _u16, _text(400), _seconds),
)
SERVER_HELLO_16 = Hello(b"l" * 16, 16 << 20)
