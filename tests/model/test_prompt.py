from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from model.backbone import load_tokenizer
from model.errors import PromptError
from model.prompt import MIN_TEXT_TOKENS, Placeholders, Prompt
from model.settings import BackboneSettings, SequenceSettings
from model.task import Task
from model.text import ans_token_id, encode_post_text
from tests.support.tiny import TASK

VISUAL = 5


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: BackboneSettings) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_backbone)


def make(tokenizer: PreTrainedTokenizerBase, task: Task = TASK, variant: Any = "agentps", **sizes: int) -> Prompt:
    sequence = SequenceSettings(**{"frames": 1, "image_size": 32, "max_text_tokens": 40, "max_tokens": 120} | sizes)
    frames = Placeholders(token_id=tokenizer.get_vocab()["<video>"], per_frame=VISUAL - 1, newline=True)
    return Prompt(tokenizer, task, variant, sequence, frames=frames)


def with_ask(wording: str) -> Task:
    return TASK.model_copy(update={"questions": (TASK.questions[0].model_copy(update={"ask": wording}),)})


def test_a_sequence_is_the_frames_the_post_the_questions_each_with_its_ans_and_the_final_question(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = encode_post_text(tokenizer, "Title", "the text", 40)
    row = make(tokenizer).batch([text])["input_ids_BT"][0].tolist()
    assert row[:VISUAL] == [tokenizer.get_vocab()["<video>"]] * VISUAL
    assert tokenizer.decode(row[VISUAL:]) == (
        "Title\nthe text\nBright?\n<ans>Which kind of album is it?\n<ans>Calm?\n<ans>Is it good?\n"
    )


def test_every_answer_position_is_an_ans_token_in_every_row(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [encode_post_text(tokenizer, title, "", 40) for title in ("a", "a walk along the sea, a walk", "今天")]
    batch = make(tokenizer).batch(texts)
    for ids, positions in zip(batch["input_ids_BT"], batch["answer_positions_BA"], strict=True):
        by_hand = [k for k, token in enumerate(ids.tolist()) if token == ans_token_id(tokenizer)]
        assert positions.tolist()[:-1] == by_hand
        assert len(by_hand) == 3


def test_the_final_answer_is_read_at_the_last_token_of_each_post(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = make(tokenizer)
    batch = prompt.batch([[7, 8], [9] * 12])
    lengths = [VISUAL + text + len(prompt.question_ids) for text in (2, 12)]
    assert batch["answer_positions_BA"][:, -1].tolist() == [length - 1 for length in lengths]


def test_padding_stands_on_the_right(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = make(tokenizer)
    short, long = [7, 8], [9] * 12
    batch = prompt.batch([short, long])
    assert batch["input_ids_BT"].shape == (2, VISUAL + 12 + len(prompt.question_ids))
    assert batch["input_ids_BT"][0, -10:].tolist() == [tokenizer.pad_token_id] * 10
    assert batch["input_ids_BT"][0, VISUAL:-10].tolist() == [*short, *prompt.question_ids]


@pytest.mark.parametrize("written", ["<ans>", "<video>", "<image>", "<|endoftext|>", "<ans><video>" * 3])
def test_a_special_token_written_in_a_post_stays_plain_text(tokenizer: PreTrainedTokenizerBase, written: str) -> None:
    ids = encode_post_text(tokenizer, f"see {written}", written, 200)
    special = {tokenizer.get_vocab()[name] for name in ("<ans>", "<video>", "<image>", "<|endoftext|>")}
    assert special.isdisjoint(ids)
    assert tokenizer.decode(ids) == f"see {written}\n{written}\n"


def test_a_long_text_is_cut_on_the_right(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode_post_text(tokenizer, "a walk", "along the sea " * 50, 10_000)
    assert encode_post_text(tokenizer, "a walk", "along the sea " * 50, 40) == whole[:40]


#: Where a cut could change the words before it: letters that join (NFC, jamo), marks, blanks, contractions, emoji.
PIECES = (
    "a", "b", "the ", "so happy ", "'s", "'", "\n", "\r\n", "  ", "\t", "1", "2024", "e\u0301", "\u0301", "\u0323",
    "한", "\u1100", "\u1161", "\u11a8", "🙂", "👩\u200d👩\u200d👧", "今天", "<ans>", "<video>", "#", "!!", "...", "ﬁ",
    "\u00a0", "\u2028", "é", "x" * 50, " " * 40, "\u0301" * 30, "\u05b0\u05bc", "=", "-",
)  # fmt: skip


def test_a_long_text_gives_the_tokens_of_the_whole_though_its_beginning_alone_is_tokenized(
    tiny_backbone: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, rng, cut = load_tokenizer(tiny_backbone), random.Random(0), 0
    for per_token in (1, 2, 32):  # 1: nearly every text is cut, where it hurts most
        monkeypatch.setattr("model.text._PER_TOKEN", per_token)
        for _ in range(500):
            pieces = rng.sample(PIECES, rng.randint(1, 6))
            title, text = ("".join(rng.choices(pieces, k=rng.randint(0, k))) for k in (50, 300))
            n = rng.choice([1, 2, 5, 20, 60])
            whole = tokenizer.encode(f"{title}\n{text}\n", add_special_tokens=False, split_special_tokens=True)
            assert encode_post_text(tokenizer, title, text, n) == whole[:n], (pieces, n, per_token)
            cut += per_token * n < len(title) + len(text)
    assert cut > 800


def test_of_ten_million_characters_a_few_thousand_are_tokenized(
    tiny_backbone: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, given = load_tokenizer(tiny_backbone), []
    call = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **options: given.append(len(text)) or call(self, text, **options),
    )
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_, **__: pytest.fail("all of it"))
    assert len(encode_post_text(tokenizer, "so happy " * 1_000_000, "a walk", 196)) == 196
    assert given == [32 * 196]


def test_long_questions_take_their_tokens_from_the_text_and_never_from_themselves(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = with_ask("Is there a watermark of another person on any one of the images? " * 2)
    plain = make(tokenizer, task, max_tokens=400, max_text_tokens=300)
    tight = make(tokenizer, task, max_tokens=len(plain.question_ids) + 20, max_text_tokens=30)
    assert tight.max_text_tokens == 20
    row = tight.batch([list(range(300, 330))])["input_ids_BT"][0].tolist()
    assert len(row) == VISUAL + 20 + len(plain.question_ids)
    assert row[VISUAL : VISUAL + 20] == list(range(300, 320))
    assert row[VISUAL + 20 :] == plain.question_ids


def test_questions_that_leave_no_room_for_the_post_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    needed = len(make(tokenizer).question_ids)
    assert make(tokenizer, max_tokens=needed + MIN_TEXT_TOKENS, max_text_tokens=20).max_text_tokens == MIN_TEXT_TOKENS
    with pytest.raises(PromptError, match=rf"take {needed} of {needed + MIN_TEXT_TOKENS - 1} tokens and leave 15 "):
        make(tokenizer, max_tokens=needed + MIN_TEXT_TOKENS - 1, max_text_tokens=20)


@pytest.mark.parametrize("wording", ["Any <ans> here?", "<ans>", "Any <video>?", "<image>", "<|endoftext|>"])
def test_a_wording_that_holds_a_special_token_is_refused(tokenizer: PreTrainedTokenizerBase, wording: str) -> None:
    with pytest.raises(PromptError, match="holds the special token <"):
        make(tokenizer, with_ask(wording))


@pytest.mark.parametrize("variant", ["vanilla", "multitask"])
def test_variants_that_read_the_last_token_only_ask_no_intermediate_question(
    tokenizer: PreTrainedTokenizerBase, variant: str
) -> None:
    batch = make(tokenizer, variant=variant).batch([[7], [8, 9]])
    assert batch["answer_positions_BA"].shape == (2, 1)
    assert tokenizer.decode(batch["input_ids_BT"][1][-4:]).endswith("good?\n")
    assert ans_token_id(tokenizer) not in batch["input_ids_BT"]


def test_a_task_without_questions_asks_the_final_one_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = make(tokenizer, Task(name="plain", version=1, final=TASK.final))
    assert tokenizer.decode(prompt.question_ids) == "Is it good?\n"
    assert prompt.batch([[7]])["answer_positions_BA"].shape == (1, 1)


def test_a_tokenizer_without_the_answer_token_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), unk_token="?", pad_token="?")
    with pytest.raises(PromptError, match="no token <ans>"):
        ans_token_id(plain)
