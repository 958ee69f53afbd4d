"""One store, one peer server, or both in one process: what `nodes.py` starts where the command line cannot.

The command line has no flags for time-outs, which tests of silence need to be short.
"""

import argparse
import signal

import trio

from plasmastream.peer import PeerServer, PeerTimeouts, ServerTimeouts
from plasmastream.store import EmbeddedStore, open_store, serve_store


async def run(options: argparse.Namespace) -> None:
    """Serve until the nursery is cancelled."""
    server_timeouts = ServerTimeouts(
        idle=options.idle,
        progress=options.progress,
        objects=options.objects,
        token=options.token,
        fetching=PeerTimeouts(connect=options.connect, progress=options.progress, store=options.store_wait),
    )

    async def serve_peers(store: object) -> None:
        server = PeerServer(
            store,  # type: ignore[arg-type]
            port=options.port,
            max_connections=options.max_connections,
            timeouts=server_timeouts,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: server.serve(task_status=task_status))
            host, port = server.address
            print(f"peer server ready at {host}:{port}", flush=True)

    async def stop_on_signal(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, nursery.cancel_scope)
        if options.external_store:
            async with open_store(options.plasma_socket, connect_timeout=options.store_connect) as client:
                await serve_peers(client)
            return
        with EmbeddedStore(options.memory) as store:
            await nursery.start(
                lambda task_status: serve_store(store.core, options.plasma_socket, task_status=task_status)
            )
            print(f"store ready at {options.plasma_socket}", flush=True)
            if options.store_only:
                await trio.sleep_forever()
            await serve_peers(store)


def main() -> None:
    """Read the command line, and serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plasma-socket", required=True)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--external-store", action="store_true")
    parser.add_argument("--store-only", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-connections", type=int, default=128)
    seconds = {"idle": 300, "progress": 30, "objects": 0.01, "token": 30}
    seconds |= {"connect": 10, "store-wait": 10, "store-connect": 2}
    for name, default in seconds.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    trio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
