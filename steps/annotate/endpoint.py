"""The connection to an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import Any

import httpx2
import openai

from model.errors import AnnotationError
from steps.annotate.settings import AnnotateSettings
from steps.secrets import masked

_CONNECT_SECONDS = 10.0
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def connect(settings: AnnotateSettings, base_url: str | None, api_key: str | None) -> openai.AsyncOpenAI:
    """A client that repeats nothing by itself: it would wait any Retry-After, and repeat an exhausted quota.

    Args:
        base_url: with its `/v1`; with `?api-version=` it is Azure's form of one deployment. None: `OPENAI_BASE_URL`,
            else OpenAI's own.
        api_key: None: `OPENAI_API_KEY`.

    Raises:
        AnnotationError: there is no key, it holds what no header can, the base URL is none, or a proxy of the
            environment cannot be used.
    """
    timeout = openai.Timeout(settings.timeout, connect=min(_CONNECT_SECONDS, settings.timeout))
    base_url = os.environ.get("OPENAI_BASE_URL") if base_url is None else base_url
    try:
        url = httpx2.URL(base_url or "")
    except httpx2.InvalidURL as error:
        raise AnnotationError(
            f"annotator {settings.source}: {masked(base_url or '')!r} is no URL ({masked(str(error))}); check "
            "OPENAI_BASE_URL"
        ) from error
    common: dict[str, Any] = {
        "api_key": api_key or os.environ.get("OPENAI_API_KEY"),
        "max_retries": 0,
        "timeout": timeout,
        # a proxy in the environment does not lead to this machine's own ports
        "http_client": openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=False)
        if url.host in _THIS_MACHINE
        else None,
    }
    try:
        if "api-version" in url.params:
            bare, version = str(url.copy_with(query=None)), url.params["api-version"]
            client: openai.AsyncOpenAI = openai.AsyncAzureOpenAI(base_url=bare, api_version=version, **common)
        else:
            client = openai.AsyncOpenAI(base_url=base_url, **common)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:  # what the base URL is was looked at before
        socks = isinstance(error, ImportError)
        hint = "or, for a SOCKS proxy, run `pip install socksio`" if socks else "for example http://HOST:PORT"
        raise AnnotationError(
            f"annotator {settings.source}: the proxy that {_proxy_variables() or 'this system'} names cannot be used: "
            f"{masked(str(error)).partition('. Make sure')[0]}; correct or unset it, {hint}"
        ) from error
    except openai.OpenAIError as error:
        raise AnnotationError(
            f"annotator {settings.source}: no API key; set OPENAI_API_KEY (to any value where none is needed), "
            "or choose `annotator: human`"
        ) from error
    if not (client.api_key.isascii() and client.api_key.isprintable()):
        raise AnnotationError(
            f"annotator {settings.source}: the API key holds characters that an HTTP header cannot; set OPENAI_API_KEY"
        )
    return client


def unreachable(error: openai.APIConnectionError, base_url: httpx2.URL) -> tuple[str, str]:
    """What was found where no connection to the endpoint came about, and what to do about it."""
    found = f"{error.message} ({error.__cause__!r})"
    proxies = "" if base_url.host in _THIS_MACHINE else _proxy_variables()
    if isinstance(error.__cause__, httpx2.ProxyError):
        return found, f"check the proxy that {proxies} names, its user and password"
    return found, "check that the endpoint runs, and OPENAI_BASE_URL" + (
        f", and the proxy that {proxies} names" if proxies else ""
    )


def _proxy_variables() -> str:
    """The names of the environment's variables of a proxy; their values may hold a password."""
    names = [name for name in os.environ if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")]
    return " or ".join(sorted(name for name in names if os.environ[name]))
