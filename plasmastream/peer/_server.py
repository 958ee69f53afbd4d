"""`PeerServer`: a store's objects for other machines, and other machines' objects for the store.

A task serves each connection; a SYNC has one more for each peer it names. A connection that fails ends alone.
"""

import ipaddress
import logging
import math
import socket
from collections import Counter
from collections.abc import Sequence, Set
from types import TracebackType
from typing import TypeAlias

import attrs
import trio

from plasmastream._errors import PeerError, ProtocolError, RemoteProtocolError, StoreError
from plasmastream._listening import accept_connections
from plasmastream._object_id import ObjectID
from plasmastream.peer._admission import Admission
from plasmastream.peer._client import make_hello
from plasmastream.peer._dispatcher import Claims, Dispatcher
from plasmastream.peer._holds import Hold, Holds
from plasmastream.peer._sender import send_objects
from plasmastream.peer._services import Services
from plasmastream.peer._serving import Session
from plasmastream.peer._timeouts import ServerTimeouts
from plasmastream.peer._transport import (
    DEFAULT_PORT,
    Connect,
    PeerStalledError,
    TcpTransport,
    Transport,
    connect,
    format_address,
)
from plasmastream.store._object_store import Lease, Leases, ObjectStore
from plasmastream.wire.stream import (
    IS_NOT_OLD,
    NEED_DATA,
    ConnectionClosed,
    Event,
    Limits,
    ServerConnection,
    Status,
    SyncRequested,
    TransferKind,
    TransferRequested,
    Version2Offered,
    is_question,
    v2,
)

_log = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS = 128

# Seconds that a connection of a peer with enough of them may be silent, and take for its first request or greeting.
_HURRY = 1.0

# Requests of one peer: so many at work at once, and so many more that wait for their turn.
_MOST_AT_WORK, _MOST_WAITING = 16, 64

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class PeerServer:
    """A Plasma Stream server beside a store.

    Args:
        store: where the objects are.
        host: the address to listen at; the default is reached from this machine only. There is no authentication:
            whoever reaches the port may read, and by TAKE delete, every object.
        port: the TCP port; 0 lets the system choose one, see `address`.
        max_connections: at this number the listener stops accepting until one ends.
        timeouts: how patient to be.
        limits: what is accepted, in version 1.
        limits2: the same in version 2.
        connect: makes connections to the peers that SYNC requests name; by TCP, unless something else is given.
        fetch_version: what to speak with them when asked by version 2: see the `version` of `PeerClient`.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        timeouts: ServerTimeouts | None = None,
        limits: Limits | None = None,
        limits2: v2.Limits | None = None,
        connect: Connect = connect,
        fetch_version: int | None = None,
    ) -> None:
        self._store = store
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._timeouts = timeouts or ServerTimeouts()
        self._limits = limits or Limits()
        self._taking = Claims()
        limits2 = limits2 or v2.Limits()
        hello = make_hello(limits2)
        self._dispatcher = Dispatcher(store, self._timeouts.fetching, hello, limits2, connect, fetch_version)
        self._services = Services(
            store,
            Holds(store.capacity, self._timeouts.token),
            Admission(_MOST_AT_WORK, _MOST_WAITING, self._timeouts.waiting),
            Admission(_MOST_AT_WORK, _MOST_WAITING, self._timeouts.waiting),
            self._dispatcher,
            hello,
            limits2,
            self._timeouts.patience,
            self._timeouts.objects,
            self._timeouts.fetching.store,
            self._may_stop,
            self._taking,
        )
        self._dispatcher.is_claimed = self._services.holds.is_claimed
        self._connections: Counter[str] = Counter()
        self._background: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._accepting = trio.CancelScope()
        self._is_stopping = False
        self._idle: dict[trio.CancelScope, Set[Hold]] = {}
        self.address = ("", 0)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `shut_down`, or until cancelled. `task_status` is started when peers can connect.

        Raises:
            PeerError: the address cannot be listened at.
        """
        listener = await _listen(self._host, self._port)
        with listener:
            self.address = listener.getsockname()[:2]
            with self._scope:
                async with trio.open_nursery() as background:
                    self._background = background
                    background.start_soon(self._dispatcher.run)
                    async with trio.open_nursery() as nursery:
                        task_status.started()
                        with self._accepting:
                            owner = f"the peer server at {format_address(self.address)}"
                            await accept_connections(
                                listener, self._serve_socket, nursery, self._max_connections, owner
                            )
                        listener.close()
                    background.cancel_scope.cancel()

    def shut_down(self, grace: float) -> None:
        """Stop accepting; let transfers under way end within `grace` seconds; then `serve` returns."""
        self._scope.deadline = trio.current_time() + grace
        self._is_stopping = True
        self._accepting.cancel()
        self._services.holds.close()
        self._stop_idle()

    def _stop_idle(self) -> None:
        for scope, used in self._idle.items():
            if all(hold.is_empty for hold in used):
                scope.cancel()

    def _may_stop(self, scope: trio.CancelScope, used: Set[Hold] = frozenset()) -> "_Idle":
        """A block of a cancel scope that a shutdown may cut short, as soon as these tokens hold nothing."""
        return _Idle(self, scope, used)

    def _is_being_taken(self, object_ids: Sequence[ObjectID]) -> bool:
        """Whether a TAKE of any of these objects is running, by either version."""
        return self._taking.overlap(object_ids) or any(map(self._services.holds.is_claimed, object_ids))

    async def _serve_socket(self, sock: socket.socket) -> None:
        await self.serve_connection(TcpTransport(sock))

    async def serve_connection(self, transport: Transport) -> None:
        """Serve one connection to its end, and close it; also one that did not come through the listener.

        What goes wrong with it is logged, not raised. Where the server does not `serve`, this returns only when what a
        client of version 2 has open has been let go as well: `ServerTimeouts.token` seconds after it was last heard of.
        """
        used: set[Hold] = set()
        peer = transport.peer.rpartition(":")[0] or transport.peer
        self._connections[peer] += 1
        try:
            await self._serve(transport, peer, used)
        except ProtocolError as error:
            _log.warning("%s: request refused, connection closed: %s", transport.peer, error)
        except PeerError as error:
            _log.info("%s", error)
        finally:
            transport.abort()  # without effect where it was closed in order
            self._connections[peer] -= 1
            if not self._connections[peer]:
                del self._connections[peer]
            if self._background is not None:
                self._background.start_soon(self._services.holds.leave, used)
            else:
                await self._services.holds.leave(used)

    async def _serve(self, transport: Transport, peer: str, used: set[Hold]) -> None:
        is_surplus = self._has_enough(peer)
        first = _Session(self, transport, _HURRY if is_surplus else math.inf)
        try:
            head_start = await first.run()
        except v2.DamagedError as error:
            # Silence would be taken for a server of version 1, and the objects would travel without checksums.
            await Session(self._services, transport, b"", peer, used, 0.0).say(error)
            raise
        if head_start is None:
            return
        is_refused = is_surplus and self._has_enough(peer)
        refusal = f"{peer} has {self._most_of_one_peer} connections already" if is_refused else ""
        greeting = max(0.0, first.greeting_deadline - trio.current_time())
        await Session(self._services, transport, head_start, peer, used, greeting).run(refusal)

    @property
    def _most_of_one_peer(self) -> int:
        return max(1, self._max_connections * 3 // 4)

    def _has_enough(self, peer: str) -> bool:
        return self._connections[peer] > self._most_of_one_peer


@attrs.frozen
class _Idle:
    """See `PeerServer._may_stop`."""

    server: PeerServer
    scope: trio.CancelScope
    used: Set[Hold]

    def __enter__(self) -> None:
        self.server._idle[self.scope] = self.used
        if self.server._is_stopping:
            self.server._stop_idle()  # also others: what their tokens held may have been let go over this connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.server._idle[self.scope]


class _Session:
    """One connection: requests in order, each answered before the next is read.

    It has no more than `hurry` seconds before and within each request: nobody's silence must keep others out.
    """

    def __init__(self, server: PeerServer, transport: Transport, hurry: float) -> None:
        self._server = server
        self._hurry = hurry
        self._transport = transport
        self._connection = ServerConnection(server._limits)
        self._timeouts = server._timeouts
        self._until_stopped = trio.CancelScope()
        self._has_asked = False
        self.greeting_deadline = math.inf
        """When all of a greeting has to be there, if one has begun."""
        self._was_doubted = False

    async def run(self) -> bytes | None:
        """Serve until the client is done, or given up, or turns out to speak version 2.

        Returns:
            In the last case, what came with the offer.
        """
        with self._until_stopped:
            return await self._serve()
        self._transport.close()
        return None

    async def _serve(self) -> bytes | None:
        event = await self._next_request()
        if isinstance(event, Version2Offered):
            return self._connection.take_rest()
        while event is not None and not isinstance(event, ConnectionClosed):
            match event:
                case TransferRequested() if self._is_in_doubt(event):
                    await self._refuse(IS_NOT_OLD)
                    event = await self._next_request()
                case SyncRequested() if self._was_doubted:
                    break
                case TransferRequested(kind=TransferKind.COPY):
                    event = await self._copy(event)
                case TransferRequested():
                    event = await self._take(event)
                case SyncRequested():
                    await self._sync(event)
                    event = await self._next_request()
        self._transport.close()
        return None

    def _is_in_doubt(self, request: TransferRequested) -> bool:
        """Whether the client doubts that we know version 2, and so wants what it asks from now on only if we do not."""
        self._was_doubted = self._was_doubted or is_question(request.object_ids)
        return self._was_doubted

    async def _next_request(self) -> Event | None:
        """The next request, or the clean end; None where the connection stays idle, or the server shuts down."""
        with self._server._may_stop(self._until_stopped):
            patience = self._timeouts.idle if self._has_asked else self._timeouts.progress
            request = await self._read_request(min(patience, self._hurry))
        return None if self._until_stopped.cancel_called else request

    async def _read_request(self, patience: float) -> Event | None:
        """The next request, of which the first byte comes within `patience` seconds; None where it does not."""
        # From its first byte on, a request has a deadline as a whole: trickling does not keep a connection.
        timeouts, deadline = self._timeouts, math.inf
        while (event := self._connection.next_event()) is NEED_DATA:
            if self._connection.is_offered_version_2:
                deadline = self.greeting_deadline
            try:
                with self._connection.get_buffer() as buffer:
                    timeout = min(patience, max(0.0, deadline - trio.current_time()))
                    nbytes = await self._transport.receive_into(buffer, timeout=timeout)
            except PeerStalledError:
                if deadline == math.inf:
                    return None
                raise
            if nbytes:
                self._connection.advance(nbytes)
                now = trio.current_time()
                deadline = min(deadline, now + min(timeouts.progress, self._hurry))
                self.greeting_deadline = min(self.greeting_deadline, now + min(timeouts.greeting, self._hurry))
            else:
                self._connection.receive_eof()
        assert isinstance(event, Event)
        self._has_asked = True
        return event

    async def _copy(self, request: TransferRequested) -> Event | None:
        """Answer a COPY, and return what comes next."""
        if self._server._is_being_taken(request.object_ids):
            await self._refuse(Status.SCHEDULED_FOR_DELETION)
        else:
            leases = await self._hold(request.object_ids)
            try:
                if leases:
                    await self._send(leases, is_take=False)
            finally:
                leases.release()
        return await self._next_request()

    async def _take(self, request: TransferRequested) -> Event | None:
        """Answer a TAKE, and return what comes next: only that shows that the client has the objects, and they go.

        It shows nothing when it was there before the answer had left: a client that sends ahead, or ends its half of
        the connection ahead, says so without having read. A shutdown waits for what comes.
        """
        taking = self._server._taking
        if self._server._is_being_taken(request.object_ids):
            await self._refuse(Status.SCHEDULED_FOR_DELETION)
        else:
            with taking.claim(request.object_ids):
                leases = await self._hold(request.object_ids)
                try:
                    if leases and (shows := await self._send(leases, is_take=True)) is not None:
                        event = await self._read_request(self._timeouts.idle)
                        if not shows:
                            _log.warning(
                                "%s went on before it could have read what it takes; nothing is deleted",
                                self._transport.peer,
                            )
                        elif event is not None:
                            await self._delete(request.object_ids)
                        return event
                finally:
                    leases.release()
        return await self._next_request()

    async def _hold(self, object_ids: Sequence[ObjectID]) -> Leases[Lease]:
        """Hold all objects; where that cannot be, refuse and hold none."""
        try:
            leases = await self._server._store.get(object_ids, timeout=self._timeouts.objects)
        except StoreError as error:
            _log.warning("%s: the store failed: %s", self._transport.peer, error)
            await self._refuse(Status.STORE_ERROR)
            return Leases()
        held = Leases([lease for lease in leases if lease is not None])
        if len(held) < len(leases):
            held.release()
            await self._refuse(Status.NOT_FOUND)
            return Leases()
        return held

    async def _send(self, leases: Sequence[Lease], *, is_take: bool) -> bool | None:
        """Send objects, or refuse where one is too large for the protocol.

        Returns:
            Whether what comes next shows that the client has read them; None after a refusal.
        """
        for lease in leases:
            status = self._server._limits.check_sizes(lease.metadata_size, lease.data_size)
            if status is not None:
                await self._refuse(status)
                return None
        timeout = self._timeouts.progress
        return await send_objects(self._connection, self._transport, leases, timeout=timeout, is_take=is_take)

    async def _refuse(self, status: int) -> None:
        self._connection.refuse(status)
        await self._transport.send(self._connection.data_to_send(), timeout=self._timeouts.progress)

    async def _delete(self, object_ids: Sequence[ObjectID]) -> None:
        try:
            await self._server._store.delete(object_ids)
        except StoreError as error:
            count = len(object_ids)
            _log.warning("%s took %d objects, which could not be deleted: %s", self._transport.peer, count, error)

    async def _sync(self, request: SyncRequested) -> None:
        for peer in request.peer_requests:
            if self._is_this_server(peer.address, peer.port):
                raise RemoteProtocolError(f"the SYNC names this server itself, {peer.address} port {peer.port}")
        statuses = await self._server._dispatcher.sync(request.peer_requests)
        self._connection.answer_sync(statuses)
        await self._transport.send(self._connection.data_to_send(), timeout=self._timeouts.progress)

    def _is_this_server(self, address: _Address, port: int) -> bool:
        host, own_port = self._server.address
        if port != own_port:
            return False
        bound, named = _plain(ipaddress.ip_address(host.partition("%")[0])), _plain(address)
        if named.is_unspecified:  # connecting to it reaches the loopback address
            named = ipaddress.ip_address("127.0.0.1" if named.version == 4 else "::1")
        return _is_local(named) if bound.is_unspecified else named == bound


def _plain(address: _Address) -> _Address:
    """An address without the IPv6 form that an IPv4 one can have."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address


def _is_local(address: _Address) -> bool:
    """Whether an address is one of this machine's: it is when a socket can be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


async def _listen(host: str, port: int) -> socket.socket:
    where = format_address((host, port))
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and address[0] == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else "no host can have this name"
        raise PeerError(f"{where} cannot be listened at: {reason}") from error
    return listener
