"""`agentps desk --demo`: a few hundred posts of the sample, scored by the champion, in a store of their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice

import yaml

from model.files import write_whole
from model.metrics import point_name
from model.post import post_id_of
from model.schema import IMAGES, LABEL, POST_ID, SPLIT, TEST, TEXT, TITLE, VIDEO
from scoring.desk.lead import add_gold
from scoring.desk.people import People
from scoring.desk.run import desk_of
from scoring.desk.work import Desk
from scoring.files import picture_reader, video_reader
from scoring.manifest import keeping, score_new
from scoring.policy import Policy
from scoring.score import LocalScore
from scoring.store import Store
from steps.ingest.sample import render_sample
from steps.ingest.streamed import stream
from steps.paths import home
from steps.register import history
from steps.retrain.fresh import folder_of
from steps.retrain.reviewed import GOLD
from steps.settings import TrainingSettings

#: Posts that are scored, and those of them whose labels are known to the desk.
_POSTS, _GOLD = 300, 20
USERS = {"reviewer-1": "reviewer", "reviewer-2": "reviewer", "lead": "lead", "owner": "owner"}


def prepare(settings: TrainingSettings, name: str, say: Callable[[str], None]) -> tuple[Store, Desk]:
    """What stands from an earlier call is used.

    Raises:
        RegistryError: there is no champion: `make train` makes one.
    """
    champion = history.champion_of(name)
    folder = home() / "desk-demo"
    policy = folder / "policy.yaml"
    if not policy.exists():
        write_whole(policy, yaml.safe_dump(_policy(settings), sort_keys=False))
    url = f"sqlite:///{folder / 'scores.db'}"
    manifest = render_sample(settings.sample, home())
    rows = [row.cells or {} for row in stream(manifest, (POST_ID, TITLE, TEXT, IMAGES, VIDEO, LABEL, SPLIT))]
    rows = list(islice((row for row in rows if row.get(SPLIT) == TEST), _POSTS))
    score, point = LocalScore.of(champion), point_name(settings.retrain.live_precision)
    rules = Policy.load(policy)
    rules.check(score.task, score.points, score.variant)
    say(f"Scoring {len(rows)} posts of the sample with {name} version {champion.version} …")
    root, limits = folder_of(manifest), settings.ingest.limits
    with keeping(url, name, champion.version, point, score.schema, rules) as kept:
        read, watch = picture_reader(root, limits), video_reader(root, limits)
        score_new(score, rows, read, kept, point, datetime.now(UTC), watch)
    store = Store.open(url)
    desk = desk_of(store, name, settings, str(manifest), policy)
    people = People(store)
    known = {user["name"] for user in people.all()}
    for user, role in USERS.items():
        if user not in known:
            people.add(user, role)
    if not desk.rows(GOLD.select().limit(1)):
        add_gold(desk, [_gold(name, row) for row in rows[:: max(1, len(rows) // _GOLD)] if row.get(LABEL) is not None])
    return store, desk


def _policy(settings: TrainingSettings) -> dict[str, object]:
    return {
        "name": "demo",
        "version": 1,
        "task": settings.task,
        "precision": settings.retrain.live_precision,
        "audit": {"flag": 0.3, "pass": 0.2},
    }


def _gold(name: str, row: dict[str, object]) -> dict[str, object]:
    known = {"label": int(str(row[LABEL])), "answers": {}, "why": "the sample's own label"}
    return {
        "model_name": name,
        "post_id": post_id_of(row[POST_ID]),
        **known,
        "added_by": "demo",
        "at": datetime.now(UTC),
    }
