"""The connection to an OpenAI-compatible endpoint."""

from __future__ import annotations

from urllib.parse import urlsplit

import openai

from model.errors import AnnotationError
from steps.settings import AnnotateSettings

_CONNECT_SECONDS = 10.0


def connect(settings: AnnotateSettings, source: str, base_url: str | None, api_key: str | None) -> openai.AsyncOpenAI:
    """A client that repeats nothing by itself: it would wait any Retry-After, and repeat an exhausted quota.

    Args:
        base_url: with its `/v1`; None: `OPENAI_BASE_URL`, else OpenAI's own.
        api_key: None: `OPENAI_API_KEY`.

    Raises:
        AnnotationError: there is no key, or it holds what no header can.
    """
    timeout = openai.Timeout(settings.timeout, connect=min(_CONNECT_SECONDS, settings.timeout))
    local = urlsplit(base_url or "").hostname in ("127.0.0.1", "localhost", "::1")
    try:
        client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            timeout=timeout,
            # a proxy in the environment does not lead to this machine's own ports
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=False) if local else None,
        )
    except openai.OpenAIError as error:
        raise AnnotationError(
            f"annotator {source}: no API key; set OPENAI_API_KEY (to any value where none is needed), "
            "or choose `annotator: human`"
        ) from error
    if not (client.api_key.isascii() and client.api_key.isprintable()):
        raise AnnotationError(
            f"annotator {source}: the API key holds characters that an HTTP header cannot; set OPENAI_API_KEY"
        )
    return client
