"""Protocols without I/O: bytes in, events out. No socket, no clock, no task, no event loop.

`wire.plasma` is the store's local protocol, `wire.stream` the one between machines. Both serve any framework.
"""
