from __future__ import annotations

import time

import pytest

from steps.secrets import mask_error, masked, resolved, set_apart

#: A text with the secret `hunter2-22`, and what is left of it.
FORMS = {
    "http://ann:hunter2-22@host:80/v1": "http://***@host:80/v1",
    "at https://hunter2-22@host/v1/: down": "at https://***@host/v1/: down",
    "http://ann:p@ss:hunter2-22%40@host/v1": "http://***@host/v1",
    "postgresql+psycopg://ann:hun/hunter2-22@db:5432/x": "postgresql+psycopg://***@db:5432/x",
    "postgresql://ann:hunter2-22?#@db/x": "postgresql://***@db/x",
    "redis://:hunter2-22@host": "redis://***@host",
    "HTTP://ANN:hunter2-22@HOST": "HTTP://***@HOST",
    "'postgresql//ann:hunter2-22@db/x' is no URL": "'postgresql//***@db/x' is no URL",
    "postgresql:/ann:hunter2-22@db/x": "postgresql:/***@db/x",
    "ann:hunter2-22@db/x": "***@db/x",
    "cut off: http://ann:hunter2-22": "cut off: http://ann:***",
    "host=db user=ann password=hunter2-22 dbname=x": "host=db user=ann password=*** dbname=x",
    "host=db password='a hunter2-22' dbname=x": "host=db password=*** dbname=x",
    "postgresql://db/x?user=a&password=hunter2-22&b=1": "postgresql://db/x?user=a&password=***&b=1",
    "http://h/v1?api-version=2024&sig=hunter2-22": "http://h/v1?api-version=2024&sig=***",
    "http://h/v1?api_key=hunter2-22": "http://h/v1?api_key=***",
    "s3://b/x?X-Amz-Signature=hunter2-22&y=1": "s3://b/x?X-Amz-Signature=***&y=1",
    "Authorization: Bearer hunter2-22": "Authorization: ***",
    "{'Authorization': 'Basic hunter2-22'}": "{'Authorization': '***'}",
    "a bearer hunter2-22 came": "a bearer *** came",
    "OPENAI_API_KEY=hunter2-22": "OPENAI_API_KEY=***",
    '{"api_key": "hunter2-22"}': '{"api_key": ***}',
    "Incorrect API key provided: sk-hunter2-22.": "Incorrect API key provided: ***.",
    "https://hooks.slack.com/services/T0/B0/hunter2-22": "https://hooks.slack.com/***",
    "found hooks.slack.com/services/T0/hunter2-22": "found hooks.slack.com/***",
    "https://discord.com/api/webhooks/1/hunter2-22": "https://discord.com/api/webhooks/***",
    "https://api.telegram.org/bot1234567:hunter2-22/send": "https://api.telegram.org/***/send",
    "ann:hunter2-22@10.0.0.1": "***@10.0.0.1",
    "  api_key: hunter2-22": "  api_key: ***",
    "    password: 'a hunter2-22'": "    password: ***",
    "Incorrect API key provided: hunter2-22.": "Incorrect API key provided: ***.",
    "agentps annotate --api-key hunter2-22 -c x": "agentps annotate --api-key *** -c x",
    'body: {\\"token\\": \\"hunter2-22\\"}': 'body: {\\"token\\": ***}',
    '{"token": "a\\"hunter2-22"}': '{"token": ***}',
    "('authorization', 'Bearer hunter2-22')": "('authorization', '***')",
    "{b'authorization': b'Bearer hunter2-22'}": "{b'authorization': b'***'}",
    "Set-Cookie: session=hunter2-22; Path=/": "Set-Cookie: *** Path=/",
    "gsk_0123456789hunter222 is no key": "*** is no key",
}
NO_SECRETS = [
    "sqlite:////home/me@work/annotations.db: database is locked",
    "file:///home/me@work/x",
    "models:/agentps-ucc@champion: no such alias",
    "annotator openai:claude@20240620 at http://127.0.0.1:9/v1/: Connection error.",
    "https://host.org/packages@v1/file",
    "git@github.com:owner/name, me@example.org: yes",
    "set OPENAI_API_KEY (to any value where none is needed), or choose `annotator: human`",
    "--set KEY=VALUE is expected, max_tokens=100, max_completion_tokens=5",
    "the token: unexpected; the password: none; a basic authentication",
    "config /home/me/hooks/run.yaml: fine_tune.epochs: 0",
    "http://127.0.0.1:9/v1/: refused; https://host: refused",
    "mysql://USER@HOST/NAME, https://HOST:PORT or sqlite:////PATH is expected",
    "from 12:30:45@noon to 10:00@HQ, ratio 16:9@1080p, 2026-11-26 12:30:45,123",
    'post user:42@site, post urn:post:1@forum.example: title: "call me:ann@example.org"',
    "gs://bucket/2026-01-01T12:30:45@1.jsonl, image 'pictures/a:b@2x.png', s3://bucket/a:b@c.jpg",
    "http://127.0.0.1:8080/v1/models/name:free@main",
    "ghcr.io/owner/name:latest@sha256:0123, registry.example.org:5000/image@sha256:0123",
    "git+ssh://git@github.com/owner/name.git, annotator ollama:70b@q4",
    "the tokenizer has {'pad_token': '<pad>', 'eos_token': '</s>'} and eos_token=</s>, token=5",
    "def call(token=None, password=None) -> (signature=(a, b))",
    r"C:\Users\ann\posts.jsonl: no such file; hooks.py:17; sk-learn-extra is not installed",
    "File \"/srv/steps/edge.py\", line 55, in told\nKeyError: 'token'",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_secret_is_masked_by_its_form(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AGENTPS_LEDGER", "AGENTPS_SCORES", "AGENTPS_WEBHOOK"):  # of a run in this process
        monkeypatch.delenv(variable, raising=False)
    assert masked(text) == FORMS[text]
    assert masked(FORMS[text]) == FORMS[text], "what is masked stays as it is"


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_what_a_variable_of_the_environment_holds_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter two 22/")
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:p%40ss word22@proxy:3128")
    text = "hunter two 22/ hunter%20two%2022%2F; p%40ss word22, p@ss word22"
    assert masked(text) == "*** ***; ***, ***"


def test_a_shell_s_folders_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PWD", "OLDPWD"):
        monkeypatch.setenv(name, "/home/me/agentps2")
    assert masked("/home/me/agentps2/posts.jsonl: no such file") == "/home/me/agentps2/posts.jsonl: no such file"


@pytest.mark.parametrize("key", ["none", "ollama", "lm-studio", ""])
def test_a_word_that_stands_for_no_key_is_no_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = "http://ollama:11434 runs lm-studio, none"
    assert masked(text) == text


class OddError(Exception):
    def __str__(self) -> str:
        return "".join(["http://ann:", "hunter2-22@host"])


def test_an_error_is_masked_with_all_that_led_to_it() -> None:
    error, cause = RuntimeError("at http://ann:hunter2-22@host", 1), ValueError("at http://ann:hunter2-22@host")
    error.__cause__, cause.__context__ = cause, OddError()

    mask_error(error)

    assert error.args == ("at http://***@host", 1)
    assert str(error.__cause__) == "at http://***@host"
    assert cause.__context__ is None, "an error whose text cannot be changed is taken out of the chain"


@pytest.mark.parametrize("part", ["a-", "a.", "+-", "hooks.", "http://", "token", '"token"', "https://x/hook"])
def test_a_long_hostile_text_is_no_work(part: str) -> None:
    """CPU seconds: 0.2 at most; with unbounded repetitions, 10 to 17."""
    begun = time.process_time()
    masked(part * (40_000 // len(part)))
    assert time.process_time() - begun < 8


def test_the_password_of_a_store_stays_out_of_a_run_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPS_SCORES", "")  # which is put back afterwards
    url = "postgresql://ann:hunter2-22@db/scores"
    assert set_apart({"retrain": {"scores": url, "min_fresh": 1}}) == {
        "retrain": {"scores": "env:AGENTPS_SCORES", "min_fresh": 1}
    }
    assert resolved("env:AGENTPS_SCORES", "retrain.scores") == url
    for plain in ("scores.jsonl", "sqlite:////a/scores.db", "postgresql://db/scores", None):
        assert set_apart({"retrain": {"scores": plain}}) == {"retrain": {"scores": plain}}
