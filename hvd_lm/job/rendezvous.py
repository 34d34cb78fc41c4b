"""The store of horovodrun's launcher over Gloo, in which ranks meet: small values by scope and key, over HTTP.

An elastic launcher forgets all that was stored whenever it gives out new places.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SECONDS = 10.0
"""For an answer that the launcher has at once."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two looks for those that are missing."""
PLACES = "rank_and_size"
"""The scope in which the launcher itself answers; it does so when all workers have asked, or ended."""


@dataclass(frozen=True)
class Store:
    """At the launcher's address. All methods raise OSError where it is gone."""

    address: str
    port: int

    def put(self, scope: str, key: str, value: bytes) -> None:
        """Keep `value`."""
        self._ask("PUT", scope, key, _SECONDS, value)

    def get(self, scope: str, key: str, seconds: float | None = _SECONDS) -> bytes | None:
        """What is kept, if anything is; waits for an answer up to so many seconds."""
        return self._ask("GET", scope, key, seconds)

    def meet(self, scope: str, rank: int, size: int, word: bytes, waiting: Callable[[Sequence[int]], None]) -> list[bytes]:
        """The `word` of all ranks, by rank, once each has left its own in `scope`.

        `waiting` is called between two looks, with the ranks that are missing; what it raises ends the waiting.
        """
        words: dict[int, bytes] = {}
        pause = _SHORTEST_PAUSE
        self.put(scope, str(rank), word)
        while missing := [other for other in range(size) if other not in words]:
            found = {other: self.get(scope, str(other)) for other in missing}
            words |= {other: said for other, said in found.items() if said is not None}
            if absent := [other for other in missing if other not in words]:
                waiting(absent)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return [words[other] for other in range(size)]

    def _ask(self, method: str, scope: str, key: str, seconds: float | None, body: bytes | None = None) -> bytes | None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=seconds)
        try:
            connection.request(method, f"/{scope}/{key}", body)
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"the launcher at {self.address}:{self.port} does not answer ({error!r})") from error
        finally:
            connection.close()
        return content if answer.status == http.HTTPStatus.OK else None
