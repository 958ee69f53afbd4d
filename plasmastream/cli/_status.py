"""All that a store tells about an object, in words: what `stat` shows, and a part of what `ls -l` does.

Names of processes are whatever these call themselves, so what would steer a terminal is replaced.
"""

import json
import time
from collections.abc import Iterable, Iterator

from plasmastream._errors import ObjectNotFoundError
from plasmastream._object_id import ObjectID
from plasmastream.cli._here import open_store_here
from plasmastream.cli._run import printable
from plasmastream.wire.plasma import ObjectHolder, ObjectInfo, ObjectStatus, ObjectUser

_MANY = 10_000  # as far as our store counts what is evicted before an object


async def print_status(object_id: ObjectID, path: str, *, as_json: bool) -> None:
    """Show an object, and why it cannot be evicted or deleted now.

    Raises:
        ObjectNotFoundError: it is not in the store.
        NotSupportedError: the store does not tell.
    """
    async with open_store_here(path) as store:
        found = await store.inspect([object_id])
    if not found:
        raise ObjectNotFoundError(f"object {object_id} is not in the store")
    (status,) = found
    now = time.time()
    if as_json:
        print(json.dumps({**as_dict(status, now), "explanation": explain(status, now)}, indent=2))
        return
    _print_lines(_lines(status, now))
    print()
    for sentence in explain(status, now):
        print(sentence)


def print_info(info: ObjectInfo, *, as_json: bool) -> None:
    """Show what any store and any peer tells of an object."""
    now = time.time()
    if as_json:
        print(json.dumps(info_as_dict(info, now), indent=2))
    else:
        _print_lines(_lines_of_info(info, now))


def info_as_dict(info: ObjectInfo, now: float) -> dict[str, object]:
    """What any store and any peer tells of an object: sizes in bytes, age in whole seconds."""
    return {
        "id": info.object_id.hex(),
        "data_size": info.data_size,
        "metadata_size": info.metadata_size,
        "state": "unsealed" if info.construct_duration < 0 else "sealed",
        "references": info.ref_count,
        "age_seconds": seconds_since(info.create_time, now),
    }


def as_dict(status: ObjectStatus, now: float) -> dict[str, object]:
    """All of it, for programs: sizes in bytes, ages in whole seconds, times in seconds since the epoch."""
    return {
        "id": status.object_id.hex(),
        "data_size": status.data_size,
        "metadata_size": status.metadata_size,
        "state": state_of(status),
        "references": status.holder_count,
        "age_seconds": seconds_since(status.created_at, now),
        "created_at": status.created_at,
        "sealed_at": status.sealed_at,
        "last_used_at": status.last_used_at,
        "in_memory": status.in_memory,
        "on_disk": status.on_disk,
        "delete_when_released": status.delete_when_released,
        "evicted_after": status.evicted_after if status.evicted_after >= 0 else None,
        "holders": [{**_user_as_dict(holder), "since": holder.since} for holder in status.holders],
        "quota_of": None if status.quota_of is None else _user_as_dict(status.quota_of),
    }


def state_of(status: ObjectStatus) -> str:
    """One word for what can be done with an object."""
    if status.sealed_at is None:
        return "unsealed"
    return "sealed" if status.in_memory else "spilled"


def explain(status: ObjectStatus, now: float) -> list[str]:
    """Say in sentences whether an object can be evicted or deleted now, and if not, for whose sake."""
    if status.sealed_at is None:
        return [*_why_unsealed(status, now), *_what_is_remembered(status, "it is sealed and its last holder lets go")]
    if status.holder_count:
        return [_why_held(status, now), *_what_is_remembered(status, "its last holder lets go"), *_whose_quota(status)]
    if not status.in_memory:
        return ["It is on disk, and comes back when somebody asks for it. It can be deleted now: nobody holds it."]
    if status.quota_of is not None:
        return ["It can be deleted now: nobody holds it.", *_whose_quota(status)]
    return [f"It can be deleted now, or evicted when room is needed: nobody holds it; {_who_goes_first(status)}."]


def holder_in_words(holder: ObjectHolder, now: float) -> str:
    """A holder in short: python3[4711] 12 s."""
    return f"{printable(holder.name) or '?'}[{holder.pid or '?'}] {_since(holder, now)}"


def seconds_since(moment: float, now: float) -> int:
    """Whole seconds, never negative: clocks are set back at times."""
    return max(0, int(now - moment))


def in_time_units(seconds: int) -> str:
    """A time span, for people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _print_lines(lines: Iterable[tuple[str, str]]) -> None:
    for name, value in lines:
        print(f"{name and name + ':':<10} {value}")


def _lines_of_info(info: ObjectInfo, now: float) -> Iterator[tuple[str, str]]:
    yield "Object", info.object_id.hex()
    yield "Size", _size(info)
    yield "State", str(info_as_dict(info, now)["state"])
    yield "Created", _ago(info.create_time, now)
    yield "Held by", "nobody" if not info.ref_count else f"{info.ref_count:,}"


def _size(described: ObjectInfo | ObjectStatus) -> str:
    return f"{described.data_size:,} bytes of data, {described.metadata_size:,} of metadata"


def _lines(status: ObjectStatus, now: float) -> Iterator[tuple[str, str]]:
    yield "Object", status.object_id.hex()
    yield "Size", _size(status)
    yield "State", state_of(status)
    places = [place for place, is_there in (("memory", status.in_memory), ("disk", status.on_disk)) if is_there]
    yield "Place", " and ".join(places)
    yield "Created", _ago(status.created_at, now)
    if status.sealed_at is not None:
        yield "Sealed", _ago(status.sealed_at, now)
    yield "Last use", "now" if status.holder_count else _ago(status.last_used_at, now)
    yield "Held by", "nobody" if not status.holder_count else f"{status.holder_count:,}"
    for holder in status.holders:
        yield "", f"{_user_in_words(holder)}, for {_since(holder, now)}"
    if len(status.holders) < status.holder_count:
        yield "", f"and {status.holder_count - len(status.holders):,} more"
    if status.quota_of is not None:
        yield "Quota of", _user_in_words(status.quota_of)


def _why_unsealed(status: ObjectStatus, now: float) -> Iterator[str]:
    for writer in status.holders[:1]:
        yield (
            f"It cannot be evicted or deleted now: {_user_in_words(writer)} has been writing it "
            f"for {_since(writer, now)}."
        )
    yield "Only its writer can abort it, which the end of the writer's connection does, too."


def _why_held(status: ObjectStatus, now: float) -> str:
    why = "It cannot be evicted or deleted now: "
    if not status.holders:
        return f"{why}{status.holder_count:,} hold it."
    first = status.holders[0]
    if status.holder_count == 1:
        return f"{why}{_user_in_words(first)} has held it for {_since(first, now)}."
    return f"{why}{status.holder_count:,} hold it, {_user_in_words(first)} for longest, {_since(first, now)}."


def _what_is_remembered(status: ObjectStatus, when: str) -> Iterator[str]:
    if status.delete_when_released:
        yield f"It is to be deleted as soon as {when}."


def _whose_quota(status: ObjectStatus) -> Iterator[str]:
    if status.quota_of is not None:
        user = _user_in_words(status.quota_of)
        yield f"It counts in the quota of {user}: it is evicted only for what that one creates."


def _who_goes_first(status: ObjectStatus) -> str:
    first = status.evicted_after
    if first <= 0:
        return "it is the next to go"
    if first == 1:
        return "1 other goes first"
    return f"{'at least ' if first >= _MANY else ''}{first:,} others go first"


def _user_in_words(user: ObjectUser) -> str:
    name = printable(user.name) or "?"
    return f"process {user.pid or '?'} ({name}, user {user.user})"


def _user_as_dict(user: ObjectUser) -> dict[str, object]:
    return {"pid": user.pid, "user": user.user, "name": user.name}


def _since(holder: ObjectHolder, now: float) -> str:
    return in_time_units(seconds_since(holder.since, now))


def _ago(moment: float, now: float) -> str:
    return f"{in_time_units(seconds_since(moment, now))} ago"
