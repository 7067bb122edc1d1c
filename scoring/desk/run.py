"""The desk as a command: what it works with is put together, and it is served until a signal ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from model.checkpoint_info import read_operating_points
from model.errors import AgentPSError, ConfigError
from model.task import load_task
from scoring.desk import policies
from scoring.desk.app import Web, create_app
from scoring.desk.memory import SOON, BeingReadError
from scoring.desk.people import People
from scoring.desk.posts import Posts
from scoring.desk.work import Desk, Thresholds
from scoring.policy import Policy
from scoring.ports import listening
from scoring.store import Store
from steps.register import registry
from steps.settings import TrainingSettings

logger = logging.getLogger(__name__)
#: Seconds between two looks at what is new in the store.
_KEEP_UP = 10.0


def thresholds_of(name: str) -> Thresholds:
    """Of the registered versions, each read once; empty, with a word, where a version cannot be read."""

    @cache
    def of(version: str) -> Mapping[str, float]:
        try:
            points = read_operating_points(registry.fetch(registry.get(name, version))).thresholds
            return {point: found.threshold for point, found in points.items()}
        except AgentPSError as error:
            logger.warning("thresholds of %s version %s are not shown: %s", name, version, error)
            return {}

    return of


def policy_of(path: Path | None, settings: TrainingSettings) -> Policy:
    """The file's; None: flag at the threshold for `retrain.live_precision`, and draw a share for people."""
    if path is not None:
        return Policy.load(path)
    raw = {
        "name": "desk",
        "version": 1,
        "task": settings.task,
        "precision": settings.retrain.live_precision,
        "audit": {"flag": 0.1, "pass": 0.02},
    }
    return Policy.parse(raw, Path("policy.yaml"))


def desk_of(
    store: Store,
    name: str,
    settings: TrainingSettings,
    posts: str | None,
    policy: Path | None,
    *,
    shows_scores: bool = False,
) -> Desk:
    """
    Args:
        posts: the manifest or folder of the posts that were scored; None: pictures and texts are not shown.
        shows_scores: see `Desk`.

    Raises:
        ConfigError, ManifestError: the policy or the posts cannot be read.
    """
    if policy is not None:
        policies.finish(store, policy)
    return Desk(
        store=store,
        model_name=name,
        task=load_task(settings.task),
        policy=policy_of(policy, settings),
        posts=Posts(posts, settings.ingest.limits),
        thresholds=thresholds_of(name),
        policy_file=policy,
        shows_scores=shows_scores,
    )


def first_links(store: Store, address: str) -> list[str]:
    """Lines for the terminal: a desk without an owner needs a first one."""
    people = People(store)
    if any(user["role"] == "owner" and user["active"] and user["ready"] for user in people.all()):
        return []
    known = {user["name"] for user in people.all()}
    secret = people.link("owner") if "owner" in known else people.add("owner", "owner")
    return [f"No owner has a password yet. Become the owner by this link, which works once: {address}/link/{secret}"]


def serve(
    desk: Desk, host: str, port: int, names: Collection[str], say: Callable[[str], None], *, demo: bool = False
) -> None:
    """Until a signal.

    Args:
        names: under which a proxy that speaks https reaches the desk; none: it is for this machine.

    Raises:
        ConfigError: the address is not free, or open to others without a proxy.
    """
    import uvicorn

    if host not in ("127.0.0.1", "::1", "localhost") and (demo or not names):
        raise ConfigError(
            f"desk: {host} is open to other machines, and passwords would go over the line in the clear: put a proxy "
            "that speaks https in front, and name its host with --behind-https"
        )
    with listening(host, port, "a free --port") as bound:
        bound.listen()  # who follows a link at once waits, and is not refused
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for line in _links(desk, address, demo=demo):
            say(line)
        say(f"The desk is at {f'https://{next(iter(names))}' if names else address}. Ctrl-C ends it.")
        app = create_app(desk, ("127.0.0.1", "localhost", *names), secure=bool(names), demo=demo)
        proxied = "127.0.0.1" if names else None
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, proxy_headers=bool(names), forwarded_allow_ips=proxied
        )
        with kept_up(app.state.web):
            uvicorn.Server(config).run(sockets=[bound])


@contextmanager
def kept_up(web: Web) -> Iterator[None]:
    """What a desk that ended had begun is gone on with. What pages count over is read before somebody waits for it."""
    ended = threading.Event()
    thread = threading.Thread(target=_keep_up, args=(web, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        web.wanted.set()
        thread.join()


def _keep_up(web: Web, ended: threading.Event) -> None:
    try:
        web.application.go_on()
    except AgentPSError as error:
        logger.error("stored records are not decided anew: %s", error)
    while not ended.is_set():
        web.wanted.clear()
        try:
            web.desk.records.read(SOON)
            web.looks.read(SOON)
        except BeingReadError:
            continue
        except AgentPSError as error:
            logger.error("%s", error)
        web.wanted.wait(_KEEP_UP)


def _links(desk: Desk, address: str, *, demo: bool) -> list[str]:
    if not demo:
        return first_links(desk.store, address)
    people = People(desk.store)
    return [f"{user['name']}: {address}/link/{people.link(str(user['name']))}" for user in people.all()]
