"""The Prefect server that commands talk to, and what is wrong where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from configs.loading.errors import ConfigError, SlipwayError

_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """Yield a client of the server that PREFECT_API_URL, the profile, or a running `slipway ui` names.

    Raises ConfigError where none is named or it wants other credentials, SlipwayError where it does not
    answer. A server that is restarted meanwhile is asked again for about a minute.
    """
    url = get_current_settings().api.url
    if url is None:
        raise ConfigError(
            "no Prefect server is named",
            "set PREFECT_API_URL, such as http://127.0.0.1:4200/api; slipway ui starts a server there",
        )
    shown = httpx.URL(url).copy_with(userinfo=b"")  # never a password
    try:
        with get_client(sync_client=True) as client:
            _require_answer(client, shown)
            yield client
    except httpx.TransportError as error:
        raise SlipwayError(
            f"the Prefect server at {shown} does not answer: {error or type(error).__name__}",
            "is it running, and is PREFECT_API_URL right?",
        ) from None


def _require_answer(client: SyncPrefectClient, shown: httpx.URL) -> None:
    try:
        client.api_version()
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code not in _REFUSED:
            raise SlipwayError(f"the Prefect server at {shown} answers {code}") from None
        raise ConfigError(
            f"the Prefect server at {shown} refuses these credentials ({code})",
            "set PREFECT_API_AUTH_STRING to user:password, as the server's administrator gave it",
        ) from None
