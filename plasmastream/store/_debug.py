"""The debug string: the store's figures in the words and the layout of Apache's store, for scripts that read it."""

from collections.abc import Iterator

from plasmastream.store._core import StoreCore


def debug_string(core: StoreCore) -> str:
    """Describe a store: sizes in bytes; "used" counts a quota as used up by whom it was given to."""
    return "\n".join(_lines(core))


def _lines(core: StoreCore) -> Iterator[str]:
    table = core.table
    held = [entry for entry in table if entry.holders]
    yield f"num clients with quota: {len(table.quotas)}"
    yield f"quota map size: {sum(len(quota.owned) for quota in table.quotas.values())}"
    yield f"pinned quota map size: {sum(entry.owner is not None for entry in held)}"
    yield f"allocated bytes: {table.allocated}"
    yield f"allocation limit: {table.capacity}"
    yield f"pinned bytes: {sum(entry.size for entry in held)}"
    left = table.unassigned
    used = 1 - (left - table.idle.nbytes) / table.capacity
    yield from _cache("global lru", left, used, len(table.idle), core.evictions, core.evicted_bytes)
    for client, quota in table.quotas.items():
        used = quota.owned.nbytes / quota.nbytes if quota.nbytes else 0.0
        yield from _cache(
            client.label, quota.nbytes, used, len(quota.owned), quota.evictions, quota.evicted_bytes
        )


def _cache(label: str, capacity: int, used: float, objects: int, evictions: int, evicted: int) -> Iterator[str]:
    yield f"({label}) capacity: {capacity}"
    yield f"({label}) used: {100 * used:g}%"
    yield f"({label}) num objects: {objects}"
    yield f"({label}) num evictions: {evictions}"
    yield f"({label}) bytes evicted: {evicted}"
