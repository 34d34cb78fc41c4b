"""The store of horovodrun's launcher over Gloo, in which ranks meet: small values by scope and key, over HTTP.

An elastic launcher forgets all that was stored whenever it gives out new places.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass

_SECONDS = 10.0
"""For an answer that the launcher has at once."""
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
