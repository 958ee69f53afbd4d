"""The store of this machine, as commands meet it."""

import os
from contextlib import AbstractAsyncContextManager

from plasmastream.store import StoreClient, open_store

_WHILE_IT_STARTS = 2.0  # seconds


def open_store_here(path: str) -> AbstractAsyncContextManager[StoreClient]:
    """Connect to the store at a socket, which may be about to answer; where there is no socket, there is no store.

    Raises:
        StoreConnectionError: no store answers.
    """
    return open_store(path, connect_timeout=_WHILE_IT_STARTS if os.path.exists(path) else 0.0)
