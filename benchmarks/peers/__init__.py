"""One short script a peer, as the users of that peer write it; each runs as ``python -m benchmarks.peers.NAME FOLDER``."""
