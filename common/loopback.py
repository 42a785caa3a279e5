"""The names by which a machine calls itself; who may do what because of it is decided elsewhere."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
