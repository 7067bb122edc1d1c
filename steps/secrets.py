"""Secrets stay out of what is printed, logged, sent and kept: one function finds them in a text.

What a run file says goes into ZenML's database with every run. So a value that is a secret is kept in a variable of the
environment meanwhile, and the option says `env:VARIABLE`.

What is found is told by its form (user info in a URL, `password=…`, a bearer token, a key that begins with `sk-`), or
because a variable of the environment holds it. Where a text leaves a doubt, it is taken for a secret.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, unquote

from model.errors import ConfigError, chain

MASK = "***"

# Repetitions are bounded: without a bound, a text of 40,000 characters without a blank would take 17 s.
#: What stands for a secret's value: up to a blank, or between quotes, which JSON may have escaped. A placeholder
#: (`<your key>`, `"<pad>"`), a signature's default and a list's begin are none.
_QUOTED = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\"(?:[^"\\]|\\\\.)*\\")"""
_NO_VALUE = r"""(?!\\?["']?<|[(\[{]|(?-i:None|True|False)\b|\d{1,2}\b)"""
_VALUE = rf"""{_NO_VALUE}(?:{_QUOTED}|[^\s&;,"'<>)\]}}]*[^\s&;,"'<>)\]}}.])"""
_NAME = (
    r"(?!(?:pad|bos|eos|unk|sep|cls|mask|image|video)_token\b)[\w-]{0,40}(?:passwords?|passwd|passphrase|pwd|secret|token|"
    r"signature|credentials?|(?:api|access|account|private|shared)[_-]?key|auth[_-]?key)"
)
_SCHEME = r"(?:\b(?!sqlite|file)[a-z][a-z0-9+.-]{0,30})"
#: What has the form `name:part@part` or `URL@` and no user info: an MLflow model (`models:/name@alias`), an annotator
#: (`openai:model@2025`), a user of git, the placeholders of our own messages.
_NO_USER = r"(?!(?:models|runs|openai|anthropic|sqlite|file|mailto|urn|git|data):)"
_NO_SECRET = r"(?!git@|(?-i:USER|HOST|NAME)\b)"
_FORMS = [
    # https://user:password@host; the password may hold anything but blanks and quotes. A plain host and its port come
    # first where the @ belongs to the path.
    rf"""({_SCHEME}:[/\\]{{2}})(?!/)(?![\w.-]{{1,255}}(?::\d+)?/){_NO_SECRET}[^\s"'<>`]{{0,2000}}(?=@)""",
    # the same behind a scheme that is mistyped
    rf"""((?<![\w@:/\\.+-]){_SCHEME}(?::/|:/{{3}}|/{{1,3}}))(?!/)[^\s"'`<>@:/]{{1,200}}:(?!/)[^\s"'`<>]{{4,200}}(?=@(?!sha\d)[\w.-]*[a-z\d])""",
    # user:password@host; the time 12:30@noon, an image a:b@2x.png and a digest name:tag@sha256 have that form, too
    rf"""((?<![\w@:/\\.+-]){_NO_USER})[\w.+%~-]{{1,200}}:(?![\d:]+@|\d+/|/)[^\s"'`<>]{{4,200}}(?=@(?!sha\d)(?:[a-z]|\d+\.\d+\.\d))""",
    # the same, cut off before its @: what follows a host is no port
    rf"""({_SCHEME}:[/\\]{{2}}[^\s/\\:@\[\]"'<>`]{{1,200}}:)(?![\d\s"'<>`*,;)]|(?-i:PORT)\b)[^\s"'<>`@]+""",
    # the path of a webhook is its secret
    r"""((?:(?<=//)|(?<![\w./-]))(?:[\w-]{1,63}\.){0,5}(?:web)?hooks?\.[\w.-]{1,255}(?::\d+)?/)[^\s"'<>`]+""",
    r"""(https?://[^\s"'<>`]{0,255}?/(?:web)?hooks?\w{0,9}/)[^\s"'<>`]+""",
    r"""(\b(?:authorization|(?:set-)?cookie)\\?["']?\s*[:=,]\s*(?:b(?=["']))?\\?["']?)(?:(?:bearer|basic|digest|token)\s+)?[^\s"',\\]+""",
    r"""(\bbearer\s+)(?:(?=\S*\d)[^\s"',]{8,}|[^\s"',]{20,})""",
    rf"(?<![\w-])({_NAME}\s*=\s*|--{_NAME}\s+){_VALUE}",
    rf"""(\\?["']{_NAME}\\?["']\s*[:=]\s*){_NO_VALUE}b?{_QUOTED}""",
    # as YAML and a server's message have it; prose ("the token: unexpected") has no digit there
    rf"""(?<![\w-])({_NAME}\s*:\s*){_NO_VALUE}(?:{_QUOTED}|(?=\S{{0,200}}\d)[^\s"',;)\]}}]{{8,}})""",
    rf"(\b(?:x-)?api[ _-]key(?: provided)?\s*:\s*){_VALUE}",
    rf"([?&](?:key|sig|pass|pw|auth|code)=){_VALUE}",
    # keys as OpenAI, Hugging Face, Groq, xAI, GitHub, GitLab, Slack, Telegram, AWS and Google make them, and a JSON web
    # token
    r"((?<![\w-]))(?:sk-(?=[\w*-]{0,200}[\d*])[\w*-]{8,}|(?:hf|gsk)_\w{16,}|xai-[\w-]{16,}|gh[pousr]_\w{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{8,}|bot\d{6,}:[\w-]{8,}|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
]
_FINDERS = [re.compile(form, re.IGNORECASE) for form in _FORMS]
#: `PWD` and `OLDPWD` are a shell's folders.
_SECRET_VARIABLE = re.compile(rf"(?!(?:OLD)?PWD$)(?:{_NAME}|\w*(?:_key|webhook))", re.IGNORECASE)
#: In a URL that may be mistyped.
_PASSWORD = re.compile(r"(?:[\w+.-]*:?[/\\]{1,3})?[^:@]*:(.+)@")
#: What stands for no key (`none`, `ollama`, `lm-studio`) is a word that a text may hold.
_NO_WORD = re.compile(r"(?=.*\d).{8,}|.{10,}", re.DOTALL)


def masked(text: str) -> str:
    """`text` with `***` in place of each secret; what is masked already stays as it is."""
    for value in _values():
        text = text.replace(value, MASK)
    for finder in _FINDERS:
        text = finder.sub(rf"\g<1>{MASK}", text)
    return text


def _values() -> list[str]:
    """The secrets that the environment holds, as they are and as they stand in a URL; the longest first."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.fullmatch(name):
            found |= {value.strip(), quote(value.strip(), safe=""), unquote(value.strip())}
        elif "@" in value and (match := _PASSWORD.match(value)):
            found |= {match[1], unquote(match[1])}
    return sorted(filter(_NO_WORD.fullmatch, found), key=len, reverse=True)


#: Option -> the variable that keeps its value during a run.
_APART = {
    ("annotate", "ledger"): "AGENTPS_LEDGER",
    ("retrain", "scores"): "AGENTPS_SCORES",
    ("notify", "webhook"): "AGENTPS_WEBHOOK",
}
#: ZenML itself reads `${NAME}` in a run file, and keeps what the variable holds.
_REFERENCE = re.compile(r"env:(\w+)|\$\{(\w+)\}")


def set_apart(options: dict[str, Any]) -> dict[str, Any]:
    """A run's options without the values that are secrets: they stand in this process's environment instead."""
    for (section, key), variable in _APART.items():
        mapping = options.get(section)
        value = mapping.get(key) if isinstance(mapping, dict) else None
        if not isinstance(value, str):
            continue
        if found := _REFERENCE.fullmatch(value):
            variable = found[1] or found[2]
        elif key == "webhook" or masked(value) != value:  # all of a webhook is a secret
            os.environ[variable] = value
        else:
            continue
        options = options | {section: options[section] | {key: f"env:{variable}"}}
    return options


def resolved(value: str, option: str) -> str:
    """What an option says, or what the variable that it names holds.

    Raises:
        ConfigError: the variable is not set.
    """
    found = _REFERENCE.fullmatch(value)
    if found is None:
        return value
    name = found[1] or found[2]
    if not os.environ.get(name):
        raise ConfigError(f"{option} is {value}, and the variable {name} is not set: set it where the step runs")
    return os.environ[name]


def mask_error(error: BaseException) -> None:
    """Mask what `error` and each error that led to it say: in place, so that whoever logs it later is served too.

    One that makes its text of other things than its arguments may still say a secret: it is taken out of the chain.
    """
    for inner in chain(error, _all_behind):
        inner.args = tuple(map(_clean, inner.args))
        for name, value in getattr(inner, "__dict__", {}).items():
            if isinstance(value, str):
                setattr(inner, name, masked(value))
    for inner in chain(error, _all_behind):
        for link in ("__cause__", "__context__"):
            other = getattr(inner, link)
            if other is not None and masked(str(other)) != str(other):
                setattr(inner, link, None)


def _clean(value: object) -> object:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, BaseException):
        mask_error(value)
    return value


def _all_behind(error: BaseException) -> tuple[BaseException | None, ...]:
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return (error.__cause__, error.__context__, *members)
