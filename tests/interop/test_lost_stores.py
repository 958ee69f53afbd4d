"""The store of a TAKE's receiver is killed, and with it what has arrived: no DROP follows, and nobody says "done".

It would delete the last copy, be the store that runs by then another one or none.
"""

from contextlib import ExitStack

import pytest

from plasmastream import PeerError
from plasmastream.peer import Outcome, PeerClient, Result, TransferKind
from plasmastream.store import EmbeddedStore, open_store
from tests.apache import ApacheStore, short_directory
from tests.interop.nodes import MIB, StoreProcess
from tests.peer.helpers import Objects, connect_watched, contents, fill, objects_of, serving

MEMORY = 16 * MIB


class Scene:
    """A TAKE from a store in this process into one in another, which is lost at a moment.

    `moment` is "sealed", when all has arrived; "asked", when the first DROP breaks off on its way to the source; or
    "dropped", when the source has heard it.
    """

    def __init__(self, moment: str, kind: str, *, comes_back: bool, stack: ExitStack) -> None:
        self.objects: Objects = objects_of([(100, 3), (0, 0), (300_000, 3)])
        self.drops = 0
        self._moment = moment
        self._comes_back = comes_back
        self._stack = stack
        self._is_apache = kind == "apache"
        self._path = stack.enter_context(short_directory()) / "plasma"
        self._store = self._start_store()
        self._arrived = 0

    def _start_store(self) -> ApacheStore | StoreProcess:
        store = ApacheStore(self._path, MEMORY) if self._is_apache else StoreProcess(self._path, MEMORY)
        self._stack.callback(store.close)
        return store

    def _lose(self) -> None:
        self._store.kill()
        if self._comes_back:
            self._start_store()

    def _note_arrival(self, number: int, nbytes: int) -> None:
        self._arrived += number
        if number and self._arrived == len(self.objects) and self._moment == "sealed":
            self._lose()

    def _before_drop(self) -> None:
        self.drops += 1
        if self.drops == 1 and self._moment != "sealed":
            self._lose()
            if self._moment == "asked":
                raise PeerError("the connection broke")

    async def take(self, source: EmbeddedStore) -> list[Result]:
        """Let it happen."""
        fill(source, self.objects)
        connect = connect_watched(self._before_drop)
        async with (
            serving(source) as server,
            open_store(self._path, connect_timeout=0.5) as store,
            PeerClient(*server.address, version=2, connect=connect) as client,
        ):
            ids = list(self.objects)
            return await client.fetch(TransferKind.TAKE, ids, store, on_progress=self._note_arrival)


@pytest.mark.parametrize("moment", ["sealed", "asked", "dropped"])
@pytest.mark.parametrize(("kind", "comes_back"), [("ours", True), ("ours", False), ("apache", True)])
async def test_a_store_is_lost(kind: str, moment: str, comes_back: bool, request: pytest.FixtureRequest) -> None:
    if kind == "apache":
        request.getfixturevalue("apache_parts")
    with ExitStack() as stack, EmbeddedStore(MEMORY) as source:
        scene = Scene(moment, kind, comes_back=comes_back, stack=stack)
        results = await scene.take(source)
        assert {result.outcome for result in results} == {Outcome.STORE_ERROR}, results
        assert scene.drops == (0 if moment == "sealed" else 1)
        if moment != "dropped":
            assert contents(source) == scene.objects
            assert all("not asked to delete" in result.reason for result in results)
        else:
            assert all("the source has deleted its own" in result.reason for result in results)
