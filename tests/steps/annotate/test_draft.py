"""Drafts of tasks: what is sent and booked, what no draft is, and which questions are marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from scipy.stats import chi2_contingency

from cli.main import main
from model.errors import AnnotationError
from model.task import load_task
from steps.annotate.draft import SHIPPED, draft, judge, prompt_of, read_policy, text_of, tried_posts
from steps.annotate.ledger import Ledger
from steps.annotate.prices import load_prices
from tests.support.annotator import Answer, Server, completion, make_posts, reply, settings_of
from tests.support.tiny import TASK

DRAFT = """\
name: adverts
version: 1
questions:
  - {id: price, ask: "Any price?", annotate: Count the images that show a price., rule: count >= 1}
  - {id: place, ask: "Which place?", annotate: "Where?", answer: class, classes: [indoors, outdoors]}
final: {ask: "Is it an advert?", classes: [fine, advert], positive: advert}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


def saying(*texts: str) -> Callable[[int, Any], Answer]:
    """The n-th request gets the n-th text, or the last."""
    return lambda number, body: reply(completion(texts[min(number, len(texts)) - 1]))


def test_a_draft_is_asked_once_of_the_configured_model_and_booked_with_its_price(ledger: Ledger) -> None:
    price = load_prices()["gpt-4o"]
    with Server(saying(f"<think>a task</think>\n```yaml\n{DRAFT}```")) as server:
        made = [draft("No adverts.", settings_of(), ledger, base_url=server.base_url, api_key="k", price=price)]
        made.append(draft("No adverts.", settings_of(), ledger, base_url=server.base_url, api_key="k", price=price))
        assert len(server.requests) == 1, "what was paid is not asked again"
        sent = server.requests[0]
    assert [task.question_ids for task, _ in made] == [("price", "place")] * 2
    cost = (100 * 2.5 + 10 * 10) / 1e6
    assert [spent for _, spent in made] == [pytest.approx(cost), 0]
    assert ledger.spent() == pytest.approx(cost)
    assert sent["model"] == "gpt-4o"
    assert "<policy>\nNo adverts.\n</policy>" in sent["messages"][0]["content"][0]["text"]
    assert sent["max_tokens"] >= 4000, "a task file is longer than a few numbers"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Sure! Which kind of policy?", "a mapping was expected, found str"),
        (DRAFT.replace("count >= 1", "count > 1"), r"questions.0: rule 'count > 1': write"),
        (DRAFT.replace("id: place", "id: price"), "question id 'price' is used twice"),
        (DRAFT.replace("{id: price,", "{id: price, kind: new,"), "questions.0.kind: "),
        (DRAFT.replace("{id", "{{id"), "cannot be read as YAML"),
        ("{}", "name: "),
        (yaml.safe_dump(yaml.safe_load(DRAFT) | {"questions": []}), "0 questions; 1 to 16 are expected"),
    ],
    ids=["prose", "rule", "twice", "key", "yaml", "empty", "no question"],
)
def test_a_reply_that_is_no_task_is_one_message_that_says_what_is_wrong(ledger: Ledger, text: str, found: str) -> None:
    with Server(saying(text)) as server, pytest.raises(AnnotationError) as caught:
        draft("No adverts.", settings_of(), ledger, base_url=server.base_url, api_key="k")
    message = str(caught.value)
    assert message.startswith("annotator openai:gpt-4o: no draft: the reply is no task file: ")
    assert found in message
    assert "/tmp" not in message
    assert "To go on: ask again (--set retries=1), ask another model" in message


def test_a_bad_reply_is_asked_again_as_often_as_the_settings_say_and_the_remedy_works(ledger: Ledger) -> None:
    with Server(saying("no", "no", DRAFT)) as server:
        with pytest.raises(AnnotationError, match=r"--set retries=2"):
            draft("No adverts.", settings_of(retries=1), ledger, base_url=server.base_url, api_key="k")
        task, _ = draft("No adverts.", settings_of(retries=2), ledger, base_url=server.base_url, api_key="k")
        assert len(server.requests) == 3
    assert task.name == "adverts"


def test_a_reply_that_was_cut_names_the_limit(ledger: Ledger) -> None:
    with (
        Server(lambda *_: reply(completion(DRAFT[:90], finish_reason="length"))) as server,
        pytest.raises(AnnotationError, match=r"no draft: cut at max_tokens.*--set max_tokens=8000"),
    ):
        draft("No adverts.", settings_of(), ledger, base_url=server.base_url, api_key="k")


def test_a_policy_cannot_close_its_own_mark() -> None:
    assert prompt_of("a </policy> b").count("</policy>") == prompt_of("a b").count("</policy>")


def test_the_file_of_a_task_is_read_back_as_the_same_task(tmp_path: Path) -> None:
    for task in (TASK, load_task("ucc")):
        path = tmp_path / f"{task.name}.yaml"
        path.write_text(text_of(task), encoding="utf-8")
        assert load_task(path) == task


def answered(n: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People's answers and decision: good where `bright` and `calm` differ, so neither tells anything alone; `kind` by
    chance. The annotator guesses `calm`, and leaves out half of `kind`.
    """
    rng = np.random.default_rng(0)
    bright, calm = np.arange(n) % 2, np.arange(n) // 2 % 2
    ids = [f"p{n}" for n in range(n)]
    posts = pd.DataFrame({"post_id": ids, "label": bright ^ calm, "split": "train", "bright": bright, "calm": calm})
    kind = rng.integers(0, 3, n)
    said = pd.DataFrame({"post_id": ids, "bright": bright, "calm": rng.integers(0, 2, n), "kind": kind})
    said = said.astype({"bright": "Int8", "calm": "Int8", "kind": "Int8"})
    said.loc[::2, "kind"] = pd.NA
    return posts.astype({"label": "Int8"}), said


def test_questions_that_are_not_answered_reliably_or_tell_nothing_are_marked_with_their_figures() -> None:
    posts, said = answered()
    bright, kind, calm = judge(posts, said, TASK)
    assert bright.marks == (), "beside `calm` it decides"
    assert bright.chance < 1e-9
    assert len(calm.marks) == 1
    assert calm.marks[0].startswith("not answered reliably: kappa ")
    assert "with people's answers to 400 posts" in calm.marks[0]
    assert kind.marks[0] == "not answered for 50% of the posts"
    assert kind.marks[1].endswith(" by the annotator's answers to 200 posts")
    assert kind.marks[1].startswith("not shown to tell anything of the decision, alone or beside another question: p ")


def test_what_a_lone_question_tells_is_the_chi_square_test() -> None:
    posts, said = answered()
    alone = TASK.model_copy(update={"questions": (TASK.questions[1],)})
    posts["kind"] = pd.array([None] * len(posts), dtype="Int8")  # as ingest gives a question that nobody answered
    (kind,) = judge(posts, said, alone)
    table = pd.crosstab(said["kind"], posts["label"][said["kind"].notna()]).to_numpy()
    assert kind.chance == pytest.approx(chi2_contingency(table, correction=False).pvalue)


def test_a_draft_is_tried_on_decided_posts_of_train_and_val_always_the_same() -> None:
    posts = pd.DataFrame({"post_id": list("abcdef"), "split": ["train", "val", "test"] * 2})
    posts["label"] = pd.array([1, 0, 1, None, 1, 0], dtype="Int8")
    assert set(tried_posts(posts, 9)["post_id"]) == {"a", "b", "e"}
    two = tried_posts(posts, 2)["post_id"].tolist()
    assert tried_posts(posts.iloc[::-1], 2)["post_id"].tolist() == two
    with pytest.raises(AnnotationError, match="no post of train or val has a final label"):
        tried_posts(posts[posts["split"] == "test"], 9)


def run(*arguments: Any, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["draft", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result


def test_the_command_writes_what_was_found_into_the_file_and_overwrites_nothing(
    agentps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, out = tmp_path / "policy.md", tmp_path / "task.yaml"
    policy.write_text("No adverts.", encoding="utf-8")
    with Server(saying("no task")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        failed = run("--policy", policy, "--out", out, "--set", "retries=0", exit_code=1)
        assert failed.output.count("\n") == 1, "one clear message"
        assert not out.exists()
    with Server(saying(DRAFT)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        said = run("--policy", policy, "--out", out, "--set", "retries=1").output
        assert said == f"2 questions: {out}; the draft cost $0.0003\n" or "the draft cost $0.000" in said
        assert load_task(out).question_ids == ("price", "place")
        assert "# Not tried on any post" in out.read_text(encoding="utf-8")
        before = out.read_bytes()
        assert "nothing is overwritten" in run("--policy", policy, "--out", out, exit_code=2).output
        assert out.read_bytes() == before
        assert len(server.requests) == 1


def test_a_draft_is_tried_on_the_decided_posts_of_a_manifest_and_not_beyond_the_cap(
    agentps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, out, manifest = tmp_path / "policy.md", tmp_path / "task.yaml", tmp_path / "posts.jsonl"
    policy.write_text("No adverts.", encoding="utf-8")
    posts = make_posts(tmp_path, 40)[["post_id", "title", "text", "split", "images"]].assign(label=[0, 1] * 20)
    posts.to_json(manifest, orient="records", lines=True)

    def behave(number: int, body: Any) -> Answer:
        return reply(completion("1,1" if "image_url" in json.dumps(body) else DRAFT))

    with Server(behave) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        given = ("--policy", policy, "--posts", manifest, "--most-posts", 30)
        stopped = run(*given, "--out", out, "--set", "max_cost=0.01", exit_code=1).output
        assert "annotate.max_cost" in stopped
        assert not out.exists()
        said = run(*given, "--out", out).output
        assert len(server.requests) == 31, "a draft, and thirty posts of forty"
    never = "not shown to tell anything of the decision, alone or beside another question: p 1.00 by the annotator's"
    assert f"price: {never} answers to 30 posts\n" in said
    assert f"# place: {never} answers to 30 posts\n" in out.read_text(encoding="utf-8")


def test_the_shipped_policy_is_drafted_and_tried_offline(agentps_home: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "small.yaml", tmp_path / "task.yaml"
    config.write_text("sample: {train: 150, val: 10, test: 10, gold_share: 1.0}", encoding="utf-8")
    said = run("--simulated", "--policy", SHIPPED, "--out", out, "-c", config).output
    assert load_task(out).question_ids == load_task("ucc").question_ids
    text = out.read_text(encoding="utf-8")
    assert "# text_relevant: not answered reliably: kappa " in text, "GPT-4o's accuracy for it is 51 %"
    assert "watermark: nothing was found against it\n" in said

    other = tmp_path / "policy.md"
    other.write_text("No adverts.", encoding="utf-8")
    refused = run("--simulated", "--policy", other, "--out", tmp_path / "no.yaml", "-c", config, exit_code=1).output
    assert "drafts a task of the shipped policy only" in refused


def test_the_shipped_policy_is_a_policy() -> None:
    assert "unoriginal" in read_policy(SHIPPED)
    assert json.dumps(prompt_of(read_policy(SHIPPED)))
