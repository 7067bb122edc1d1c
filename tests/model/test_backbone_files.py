"""Each file of a backbone as a stranger might leave it is one line, in reasonable time and memory."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from model.errors import AgentPSError
from model.settings import BackboneSettings
from tests.support.damage import (
    NAN,
    READ,
    Damage,
    config,
    fifo,
    folder_named,
    header,
    in_parts,
    link_to_nothing,
    read,
    recoded,
    rope,
    tokenizer_config,
    tokenizer_json,
    too_large,
    write,
)


@pytest.fixture
def folder(tiny_backbone: BackboneSettings, tmp_path: Path) -> Path:
    shutil.copytree(tiny_backbone.name, tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # files that are none, or not of the form that is meant
        *((folder_named(n), rf"'{re.escape(n)}' is no file, or a link to none: fetch it again") for n in READ),
        *((link_to_nothing(n), rf"'{re.escape(n)}' is no file, or a link to none: fetch it again") for n in READ),
        *((fifo(n), rf"'{re.escape(n)}' is no file, or a link to none: fetch it again") for n in READ),
        *((recoded(n, "utf-8-sig"), rf"{n} cannot be read .*byte order mark: save it as UTF-8") for n in READ[:3]),
        *((recoded(n, "utf-16"), rf"{n} cannot be read .*byte order mark: save it as UTF-8") for n in READ[:3]),
        *((write(n, '{"a":' * 10**5), rf"{n} cannot be read as JSON: it is damaged") for n in READ[:5]),
        *((write(n, '{"a": 1, "a": 2}'), rf"{n}: the key 'a' stands there twice: keep the right") for n in READ[:5]),
        *((too_large(n), rf"{n}: 300,000,000 bytes; 200,000,000 at most: fetch it again") for n in READ[:5]),
        (config("text_config", num_hidden_layers=10**5), r"num_hidden_layers: a whole number from 1 to 1,000 was"),
        (config("vision_config", num_hidden_layers=900), r"describes [\d,]+ weights, the files hold [\d,]+ \(model"),
        (config("vision_config", image_size=10**12), r"image_size: a whole number .*found 1000000000000: take"),
        (config("vision_config", lessons=-1), r"vision_config.lessons: a number from 0 to 1,000 .*found -1: take"),
        (config("text_config", vocab_size=10**9), r"describes [\d,]+ weights, the files hold [\d,]+ \(model"),
        (config("text_config", vocab_size=10**30), r"vocab_size: a whole number .*found 10{30}: take the file"),
        (config(num_labels=10**8), r"config\.json: num_labels: a whole number from 1 to 1,000 was expected"),
        (config("text_config", pad_token_id=10**9), r"no network can be made of its config\.json"),
        (config("text_config", head_dim=7), r"config\.json cannot be used \(.*head_dim.*\); take all its files anew"),
        # every answer would be NaN
        *((rope(rope_theta=theta), r"rope_parameters\.rope_theta: a number from 1 to") for theta in (0, -5.0, "x")),
        *((rope(rope_theta=theta), r"rope_theta: finite numbers were expected") for theta in (NAN, float("inf"))),
        (rope(rope_type="linear", factor=0), r"rope_parameters\.factor: a number from 1 to .*found 0"),
        (rope(rope_type="nope"), r"no network can be made of its config\.json"),
        (config("text_config", rope_theta=-3, rope_parameters=None), r"text_config\.rope_theta: a number from 1 to"),
        (config("text_config", rms_norm_eps=-1.0), r"rms_norm_eps: a number from 0 to 1 was expected, found -1\.0"),
        (config("text_config", rms_norm_eps=NAN), r"rms_norm_eps: finite numbers were expected, found nan"),
        (config("vision_config", layer_norm_eps=-1.0), r"layer_norm_eps: a number from 0 to 1 was expected"),
        (config("text_config", attention_dropout=5.0), r"attention_dropout: a number from 0 to 1 was expected"),
        # its answers would be of another form
        (config(vision_feature_select_strategy="default"), r"select_strategy: 'full' was expected, found 'default'"),
        (config("vision_config", return_dict=False), r"return_dict: True was expected, found False"),
        (config(_attn_implementation="flash_attention_9"), r"no network can be made of its config\.json \(ValueError"),
        # the index of weights
        (in_parts({"x": "/etc/passwd"}), r"names '/etc/passwd', a file elsewhere"),
        *((in_parts({"x": name}), r"'\.{0,2}' is no file, or a link to none") for name in ("", ".", "..")),
        (in_parts({"x": "a" * 5000}), r"'a{100,200}, which model\.safetensors\.index\.json names, is missing"),
        (in_parts({"x": "a\nb\0"}), r"'a\\nb\\x00', which model\.safetensors\.index\.json names, is missing"),
        (in_parts({"x": "tokenizer.json"}), r"tokenizer\.json is no whole safetensors file"),
        (in_parts({}), r"the files hold 0 \(\)"),
        *((header(n), r"model\.safetensors is no whole safetensors file: it") for n in (0, 2**31, 2**63 - 1)),
        # the tokenizer
        *((write(n, "[1]"), rf"{n}: a mapping was expected, found list") for n in READ[1:5]),
        (write("special_tokens_map.json", '{"pad_token": 5}'), r"no tokenizer can be loaded \(Special token pad_token"),
        (write("added_tokens.json", '{"zz": "x"}'), r"no tokenizer can be loaded"),
        (write("added_tokens.json", '{"zz": 1000000000}'), r"its tokenizer has [\d,]+ tokens, its embedding [\d,]+"),
        (tokenizer_config(tokenizer_class=3), r"no tokenizer can be loaded \(.*\); take all its files anew"),
        (tokenizer_config(added_tokens_decoder={"x": "y"}), r"no tokenizer can be loaded \(.*added_tokens_decoder"),
        (tokenizer_config(padding_side="up"), r"no tokenizer can be loaded \(Padding side"),
        (tokenizer_config(pad_token="<new>"), r"its tokenizer has [\d,]+ tokens, its embedding [\d,]+ rows"),
        (tokenizer_json("model", dropout=0.9), r"model\.dropout 0\.9 would read a text as other tokens each time: set"),
        (tokenizer_json("model", vocab={"a": -1}), r"no tokenizer can be loaded"),
    ],
)  # fmt: skip
def test_odd_files_of_a_backbone_are_one_line(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(AgentPSError, match=message) as refused:
        read(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert str(folder) in str(refused.value)
