"""A task file drafted by an LLM from a policy's text, and what its questions are worth; a person decides.

The request goes the way of every annotation: the same client, prices, cap and ledger (a draft that was paid for is not
asked again). The reply must be a task by `model.task`; anything else is no answer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import chi2, chi2_contingency

from model.errors import AnnotationError, TaskError, plain
from model.schema import IMAGE_SHA256, IMAGES, LABEL, POST_ID, ROOT, SPLIT, TEXT, TITLE, TRAIN, VAL
from model.task import TASKS_DIR, Task, load_task
from steps.annotate.agreement import QuestionAgreement, agreement
from steps.annotate.client import annotate_posts, ask_all
from steps.annotate.ledger import RAW_CHARACTERS, UNPAID, Ledger, Missing
from steps.annotate.plan import FINAL
from steps.annotate.prices import Price
from steps.annotate.reply import AnswerError, Asked, unwrapped
from steps.annotate.requests import Request, Requests
from steps.annotate.settings import AnnotateSettings

#: The policy of the shipped task, in words.
SHIPPED = TASKS_DIR / "ucc.md"
#: Tokens that a draft may have, where the settings allow fewer; characters of a policy; questions of a draft.
TOKENS = 4_000
_LONGEST, _MOST_QUESTIONS = 100_000, 16
#: A question is marked: with more missing answers; with a kappa not surely above "slight" (Landis and Koch 1977); where
#: chance makes answers and decision depend on each other as much this often.
_MISSING, _KAPPA, _CHANCE = 0.2, 0.2, 0.05
#: Posts by people below which a kappa is not read.
_LEAST = 30

_PROMPT = """\
You turn a content policy into a task file for moderating posts. A post is an album of images with a title and a text. \
An annotator answers small intermediate questions on each post, and a model learns from the answers and from people's \
final decision.

Write 3 to 8 intermediate questions, each about one thing that can be seen in a post, so that together they tell the \
decision, and none needs the others. Return ONLY YAML of exactly this form:

name: short_name            # a-z, 0-9 and _
version: 1
questions:
  - id: short_id            # a-z, 0-9 and _; each once
    ask: Any watermark?     # what the model reads: 5 words at most
    annotate: >-            # what the annotator reads: whole instructions. '{title}' and '{text}' stand for the post's
      Count the images with a watermark. ONLY return the number.
    rule: count >= 1        # the answer is a number of images: yes where `count >= N` or `share >= 0.5` of them
  - id: place
    ask: Which place?
    annotate: Where was it taken?
    answer: class           # or the answer is one of the classes, and there is no rule
    classes: [indoors, outdoors, elsewhere]
final:
  ask: Is the post bad?
  classes: [fine, bad]      # two; the one to be flagged second
  positive: bad

The policy stands between <policy> and </policy>:
<policy>
{policy}
</policy>"""


@dataclass(frozen=True)
class Judged:
    """What a drafted question showed on posts that people decided."""

    agreement: QuestionAgreement
    #: Posts with an answer and a decision, and how often chance makes these depend on each other as much.
    posts: int
    chance: float
    #: Why a person should look at it; empty: nothing was found.
    marks: tuple[str, ...]


def read_policy(path: Path) -> str:
    """Raises: TaskError where the file is no text, empty, or too long."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"policy {path}: cannot be read as text: {error}: give a Markdown file in UTF-8") from error
    if not text or len(text) > _LONGEST:
        raise TaskError(
            f"policy {path}: {len(text):,} characters; a text of 1 to {_LONGEST:,} is expected: write down what is "
            "decided and by what signs"
        )
    return text


def prompt_of(policy: str) -> str:
    return _PROMPT.replace("{policy}", policy.replace("</policy>", "< /policy>"))


def shipped_draft() -> dict[str, str]:
    """What the simulated endpoint answers, by the text that it is asked: it knows the shipped policy only."""
    task = load_task("ucc")
    return {prompt_of(read_policy(SHIPPED)): text_of(task)}


def draft(
    policy: str,
    settings: AnnotateSettings,
    ledger: Ledger,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
) -> tuple[Task, float]:
    """The task that the model of `settings` makes of a policy, and the dollars that this took now.

    Raises:
        AnnotationError: as `annotate_posts`, or no task came back.
    """
    form: dict[str, Any] = {"ask": "together", "format": "numbers", "mode": "online", "max_missing_share": 1.0}
    asked = settings.model_copy(update={**form, "splits": (TRAIN,), "max_tokens": max(settings.max_tokens, TOKENS)})
    requests = _Requests(prompt_of(policy), asked, price)
    known = ledger.lookup([requests.key])
    tally = ask_all(requests, ledger, known, base_url=base_url, api_key=api_key)
    answer = (known | tally.answers)[requests.key]
    raw = ledger.raw_of([requests.key])
    if answer.missing is not None:
        raise AnnotationError(_no_draft(answer.missing, answer.attempts, raw, settings))
    return _parsed(raw), tally.budget.spent


class _Requests(Requests):
    """One request, for the draft of a policy: a post without pictures, for the parts that handle posts."""

    def __init__(self, text: str, settings: AnnotateSettings, price: Price | None) -> None:
        self._text = text
        self.key = hashlib.sha256(json.dumps(["draft", text, settings.source]).encode()).hexdigest()
        columns = {POST_ID: "draft of a task", TITLE: "", TEXT: "", ROOT: "", SPLIT: TRAIN}
        post = pd.DataFrame([{**columns, IMAGES: [], IMAGE_SHA256: []}])
        question = {"id": "draft", "ask": "Draft?", "annotate": "Draft", "answer": "class"}
        final = {"ask": "Draft?", "classes": ("no", "yes"), "positive": "yes"}
        task = Task.model_validate({"name": "draft", "version": 1, "questions": [question], "final": final})
        super().__init__(post, task, settings, price)

    def _key(self, index: int, task: Task, title: str, text: str) -> str:
        return self.key

    def text(self, request: Request) -> str:
        return self._text

    def asked(self, request: Request, body: Mapping[str, Any]) -> Asked:
        fields = [name for name in body if name not in ("model", "messages")]
        return Asked(self.task, 0, self.settings.format, fields, read=_counts)


def _counts(text: str) -> list[int]:
    """What the ledger keeps of a draft in place of numbers. Raises: AnswerError where `text` is no task."""
    try:
        _parsed(text)
    except TaskError:
        raise AnswerError(Missing.MALFORMED) from None
    return [0]


def _parsed(text: str) -> Task:
    """Raises: TaskError."""
    if len(text) > RAW_CHARACTERS:
        raise TaskError(f"{len(text):,} characters; at most {RAW_CHARACTERS:,} are expected")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "draft.yaml"
        path.write_text(unwrapped(text), encoding="utf-8")
        try:
            task = load_task(path)
        except TaskError as error:
            raise TaskError(str(error).replace(f"task {path}: ", "")) from None
    if not 1 <= len(task.questions) <= _MOST_QUESTIONS:
        raise TaskError(f"{len(task.questions)} questions; 1 to {_MOST_QUESTIONS} are expected")
    return task


def _no_draft(reason: Missing, attempts: int, raw: str, settings: AnnotateSettings) -> str:
    found = str(reason)
    if reason is Missing.MALFORMED:
        try:
            _parsed(raw)
        except TaskError as error:
            found = f"the reply is no task file: {error}"
    remedy = (
        "start the same command again"
        if reason in UNPAID
        else "raise annotate.max_tokens (--set max_tokens=8000), or the limit that annotate.request_fields sets"
        if reason is Missing.CUT
        else "ask another model (--set model=…), or change the policy's text"
        if reason in FINAL
        else f"ask again (--set retries={attempts}), ask another model (--set model=…), or change the policy's text"
    )
    return f"annotator {settings.source}: no draft: {found}. Its reply: {plain(raw)[:300]!r}. To go on: {remedy}"


def tried_posts(posts: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many of the posts of train and val that people decided, chosen the same way every time.

    Raises:
        AnnotationError: there is none.
    """
    known = posts[posts[SPLIT].isin([TRAIN, VAL]) & posts[LABEL].notna()]
    if known.empty:
        raise AnnotationError("no post of train or val has a final label by people: a draft cannot be tried on them")
    order = known[POST_ID].map(lambda id_: hashlib.sha256(id_.encode()).hexdigest()).sort_values(kind="stable")
    return known.loc[order.index[:most]]


def try_draft(
    posts: pd.DataFrame,
    task: Task,
    settings: AnnotateSettings,
    ledger: Ledger,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
) -> list[Judged]:
    """Have the annotator answer the draft's questions on `posts` (see `tried_posts`) and measure each of them."""
    trial = settings.model_copy(update={"splits": (TRAIN, VAL), "max_missing_share": 1.0})
    result = annotate_posts(posts, task, trial, ledger, base_url=base_url, api_key=api_key, price=price)
    return judge(posts, result.labels, task)


def judge(posts: pd.DataFrame, labels: pd.DataFrame, task: Task) -> list[Judged]:
    """Each question of the task: answered as people answer it, and of use for what people decided?

    What a question tells is read off people's answers where there are enough: the annotator's errors are another
    matter, and would hide it.

    Args:
        posts: with people's decision and, where there are any, their answers.
        labels: the annotator's, one row per post.
    """
    people = posts.set_index(POST_ID).reindex(labels[POST_ID]).reset_index()
    measures = agreement(posts, labels, task)
    whose = {one.question: people if one.gold >= _LEAST else labels for one in measures}
    answers = pd.DataFrame({id_: table[id_].astype("Int64").to_numpy() for id_, table in whose.items()})
    decided = people[LABEL].astype("Int64")
    found = []
    for one in measures:
        chance = _by_chance(answers, one.question, decided)
        n = int((answers[one.question].notna() & decided.notna()).sum())
        missing = float(labels[one.question].isna().mean())
        by = "people's" if whose[one.question] is people else "the annotator's"
        found.append(Judged(one, n, chance, _marks(one, missing, n, chance, by)))
    return found


def _by_chance(answers: pd.DataFrame, question: str, decided: pd.Series) -> float:
    """How often chance makes answers and decisions depend on each other as much as these do, alone or among the posts
    of one answer to another question: the least p-value of chi-square tests, by Bonferroni for their number.

    A question may tell nothing alone, and much beside another: a text that fits the pictures means something else in
    an album of one theme.
    """
    frame = answers.assign(**{LABEL: decided}).dropna(subset=[question, LABEL])
    values = []
    for strata in (
        [frame],
        *([part for _, part in frame.groupby(id_)] for id_ in map(str, answers) if id_ != question),
    ):
        statistic, freedom = 0.0, 0
        for stratum in strata:
            table = pd.crosstab(stratum[question], stratum[LABEL]).to_numpy()
            if table.size and min(table.shape) > 1:
                test = chi2_contingency(table, correction=False)
                statistic, freedom = statistic + test.statistic, freedom + test.dof
        values.append(float(chi2.sf(statistic, freedom)) if freedom else 1.0)
    return min(1.0, min(values) * len(values))


def _marks(one: QuestionAgreement, missing: float, n: int, chance: float, by: str) -> tuple[str, ...]:
    marks = []
    if missing > _MISSING:
        marks.append(f"not answered for {missing:.0%} of the posts")
    if one.answered >= _LEAST and (interval := one.kappa_interval) is not None and interval[0] < _KAPPA:
        marks.append(
            f"not answered reliably: kappa {one.kappa:.2f} [{interval[0]:.2f}, {interval[1]:.2f}] with people's "
            f"answers to {one.answered:,} posts"
        )
    if chance >= _CHANCE:
        marks.append(
            f"not shown to tell anything of the decision, alone or beside another question: p {chance:.2f} by {by} "
            f"answers to {n:,} posts"
        )
    return tuple(marks)


def text_of(task: Task) -> str:
    """The task as a task file."""
    values = task.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def file_of(task: Task, policy: Path, source: str, judged: Sequence[Judged] | None) -> str:
    """A task file that says where it comes from and what of it was marked."""
    lines = [f"Drafted by {source} from {policy.name}. Read each question before you train with it."]
    if judged is None:
        lines.append("Not tried on any post (`agentps draft --posts MANIFEST` does).")
    for one in judged or ():
        lines += [f"{one.agreement.question}: {mark}" for mark in one.marks]
    return "".join(f"# {plain(line)}\n" for line in lines) + text_of(task)
