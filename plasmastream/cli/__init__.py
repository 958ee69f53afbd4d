"""The command line: `plasmastream`; Apache's command, and two of the first implementation, under their old names.

Commands are registered by name, and imported when they are called: `--help` should not wait for an event loop.
"""

from cyclopts import App

from plasmastream import __version__
from plasmastream.cli._run import run, run_app

_COMMANDS = {
    "store": "Serve a store to the processes of this machine.",
    "serve": "Serve a store, and its objects to other machines.",
    "put": "Put files into the store, or into that of a peer.",
    "get": "Write an object of the store, or of a peer's, to standard output or to a file.",
    "ls": "List the objects in the store, or in that of a peer.",
    "stat": "Show an object, and why it cannot go now, or what a peer tells of one.",
    "rm": "Delete objects from the store.",
    "copy": "Fetch objects from another machine into the store.",
    "take": "Fetch objects from another machine, which deletes its own.",
    "sync": "Have a server fetch objects from other servers.",
    "bench": "Measure how fast objects go to another machine and back.",
    "demo": "Move objects between two nodes on this machine.",
}

_EPILOGUE = """\
Exit statuses: 0 done; 1 the work failed; 2 wrong usage; 3 no store or peer answers, or not in time;
130 interrupted; 141 whoever read the output is gone."""


def _app(name: str, purpose: str) -> App:
    return App(
        name=name,
        help=purpose,
        help_epilogue=_EPILOGUE,
        version=__version__,
        backend="trio",
        suppress_keyboard_interrupt=False,
    )


def plasmastream_app() -> App:
    """Make the command `plasmastream`."""
    app = _app("plasmastream", "Share objects between processes, and move them between machines.")
    for name, purpose in _COMMANDS.items():
        app.command(f"plasmastream.cli.{name}:{name}", name=name, help=purpose)
    return app


def main() -> None:
    """Run `plasmastream`."""
    run_app(plasmastream_app())


def plasma_store_server() -> None:
    """Run `plasma-store-server`, with the flags of Apache's command."""
    from plasmastream.cli.store_server import store_server

    run("plasma-store-server", store_server)


def plasma_stream_server() -> None:
    """Run `plasma-stream-server`, with the flags of the first implementation."""
    from plasmastream.cli.stream_server import stream_server

    app = _app("plasma-stream-server", "Serve an existing store's objects to peers. See also: plasmastream serve.")
    app.default(stream_server)
    run_app(app)


def plasma_stream_cli() -> None:
    """Run `plasma-stream-cli`, with the flags of the first implementation."""
    from plasmastream.cli.stream_cli import stream_cli

    app = _app("plasma-stream-cli", "Have a server carry out each line of standard input. See also: plasmastream sync.")
    app.default(stream_cli)
    run_app(app)
