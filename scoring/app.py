"""The service as a FastAPI application: posts in, records out. It needs no Ray: `scoring.serve` is how Ray runs it.

What is wrong with a request is answered with a reason and a status of 400 and more; what is wrong with a post, with an
error in its record. No word of a request goes into a log.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from scoring.about import Served
from scoring.keys import Keys
from scoring.requests import Read, ScoreAnswer, ScoreRequest, Service
from scoring.settings import ServiceSettings, load_service

logger = logging.getLogger(__name__)


async def anybody(request: Request) -> None:
    """Who asks: `request.state.client`, by which its work may be limited. This one lets everybody in; a dependency that
    knows keys sets it, or raises an HTTPException of 401 or 403, before anything of the body is read.
    """


class Ready(BaseModel):
    """trouble: a newer version that could not be loaded, or a registry that does not answer; the older one serves."""

    ready: bool
    model: str
    version: str
    task: str
    since: str
    challenger: str | None
    trouble: str | None
    queued_posts: int


class Problem(BaseModel):
    detail: str | list[str]


def create_app(
    score: Served,
    settings: ServiceSettings | None = None,
    *,
    read: Read | None = None,
    who: Callable[..., Any] | None = None,
) -> FastAPI:
    """The application. `app.state.service` is what its requests share.

    Args:
        read: the bytes of a picture or a video, or an ImageError, which must not tell more than its sender may know.
            It is called in a thread. None: data URLs, URLs of `settings.image_hosts`, and paths under
            `settings.image_root`.
        who: a FastAPI dependency of `POST /score`, as `anybody`. None: who has one of `settings.keys`, if that is set.

    Raises:
        ConfigError: the file of the keys cannot be used.
    """
    settings = settings or load_service()
    service = Service(score, settings, read)
    who = who or _who_of(settings)
    app = FastAPI(title="AgentPS", description="What a model version says of posts.", redoc_url=None)
    app.state.service = service

    async def score_posts(request: Request) -> Response:
        """A record for each post, in order, made by the version that it names."""
        status = 499  # the client has gone, and this call was cancelled
        try:
            answer = await service.answer(request)
            status = answer.status_code
        except HTTPException as refused:
            status = refused.status_code
            raise
        except Exception as error:  # noqa: BLE001  # the edge: whatever it is, it tells nothing of the posts
            status = 500
            logger.error("request failed: %s", _where(error))
            answer = JSONResponse({"detail": "this server could not score the posts; its log says more"}, status)
        finally:
            service.metrics.requests.labels(str(status)).inc()
        return answer

    app.router.add_api_route(
        "/score", score_posts, methods=["POST"], response_model=ScoreAnswer, responses=_problems(),
        openapi_extra=_request_body(), dependencies=[] if who is anybody else [Depends(who)],
        route_class_override=_Short,
    )  # fmt: skip
    _add_probes(app, service)
    return app


class _Short(APIRoute):
    """Without what FastAPI does for each request before it knows that nothing depends on it: that takes as long as to
    read a post.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return super().get_route_handler() if self.dependencies else self.endpoint


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/ready", response_model=Ready, responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        """Whether posts are taken, and which version scores them."""
        status = service.score.about.status
        response.status_code = 503 if service.draining else 200
        return Ready(
            ready=not service.draining, model=status.model, version=status.version, task=status.task,
            since=status.since.isoformat(), challenger=status.challenger, trouble=status.trouble,
            queued_posts=service.posts,
        )  # fmt: skip

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _problems() -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": what}
        for status, what in {
            401: "Keys are asked for here, and this one is not known.",
            408: "The request was not sent in time.",
            413: "The request is too large.",
            415: "The body is not JSON.",
            429: "Busy: send it again after the seconds of `Retry-After`.",
            503: "The server is ending.",
        }.items()
    }
    return found | {422: {"model": ScoreAnswer | Problem, "description": "No post was scored: the reasons."}}


def _who_of(settings: ServiceSettings) -> Callable[..., Any]:
    return anybody if settings.keys is None else Keys(Path(settings.keys)).who


def _where(error: BaseException) -> str:
    """The class, and the line that raised it: a message may hold what was sent."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return type(error).__name__ + where


def _small_video() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in ((200, 120, 40), (40, 120, 200)):
            output.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))))
        output.mux(stream.encode())
    return buffer.getvalue()


def _request_body() -> dict[str, Any]:
    """The body in the OpenAPI document; it is read by hand, so that its size is known before it is parsed."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 120, 40)).save(picture, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    post = {"post_id": "42", "title": "A walk along the sea", "text": "#sea #travel", "images": [image]}
    schema = ScoreRequest.model_json_schema()
    inner = schema.pop("$defs")["ScorePost"]
    schema["properties"]["posts"]["items"] = inner
    video = f"data:video/mp4;base64,{base64.b64encode(_small_video()).decode()}"
    examples = {
        "one post": {"value": {"posts": [post]}},
        "two posts": {"value": {"posts": [post, {**post, "post_id": "43", "title": ""}]}},
        "a video": {"value": {"posts": [{"post_id": "44", "title": "A walk, seen", "video": video}]}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }
