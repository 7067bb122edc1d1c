"""A backbone that is not what it should be is refused in one line, before a network is made of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.backbone import all_finite, load_tokenizer
from model.errors import AgentPSError
from model.settings import BackboneSettings
from model.text import known_share
from steps.paths import REPOSITORY
from tests.support.damage import (
    LFS,
    PAGE,
    WEIGHTS,
    Damage,
    as_pickle,
    as_type,
    config,
    cut,
    in_parts,
    more_tokens,
    one_id_for_all,
    one_layer_more,
    one_number,
    other_shape,
    read,
    remove,
    replaced,
    tokenizer_config,
    tokenizer_json,
    unknown_unnamed,
    weights,
    whole_words,
    word_pieces,
    write,
)


@pytest.fixture
def folder(tiny_backbone: BackboneSettings, tmp_path: Path) -> Path:
    shutil.copytree(tiny_backbone.name, tmp_path / "backbone")
    return tmp_path / "backbone"


NO_FLOATS = [torch.int8, torch.float64, torch.bool, torch.float8_e4m3fn]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # no backbone at all
        (lambda f: [path.unlink() for path in f.iterdir()], r"no config\.json \(found nothing\): give the folder"),
        (remove("config.json"), r"no config\.json \(found model\.safetensors, tokenizer\.json"),
        (write("config.json", PAGE), r"config\.json cannot be read as JSON: it holds a web page"),
        (write("config.json", LFS), r"config\.json .*Git LFS pointer .*git lfs pull"),
        (write("config.json", ""), r"config\.json cannot be read as JSON: it is empty"),
        (write("config.json", "[]"), r"config\.json: a mapping was expected, found list"),
        (write("config.json", "{}"), r"a model of type None; one of agentps_own, llava_onevision, "),
        (write("config.json", '{"model_type": "qwen2"}'), r"a model of type 'qwen2'; one of agentps_own, "),
        (config(model_type="llava"), r"a model of type 'llava'; one of agentps_own, llava_onevision, "),
        # made-up weights of a network that would not fit into memory, without the second
        (config(text_config=None), r"text_config: a mapping was expected, found NoneType"),
        (config("text_config", hidden_size=10**9), r"describes [\d,]{20,} weights, the files hold [\d,]+ \(model"),
        (config("text_config", hidden_size=32), r"\d+ weights have another shape .* is \(64,\), \(32,\) was expected"),
        (config("text_config", hidden_size=-1), r"text_config\.hidden_size: a whole number .*found -1"),
        (config("text_config", hidden_size="64"), r"hidden_size: a whole number .*found '64'"),
        (config("text_config", num_hidden_layers=10**9), r"num_hidden_layers: a whole number .*found 1000000000"),
        (config("text_config", hidden_act="nope"), r"no network can be made of its config\.json"),
        (config("text_config", num_attention_heads=5), r"\d+ weights have another shape"),
        (config("text_config", num_key_value_heads=1), r"\d+ weights have another shape"),
        (config("text_config", num_hidden_layers=4), r"config\.json cannot be used"),
        (config("vision_config", num_attention_heads=5), r"no network can be made of its config\.json"),
        (config("vision_config", patch_size=0), r"vision_config\.patch_size: a whole number .*found 0"),
        (config("vision_config", model_type="clip_vision_model"), r"tower is clip_vision_model; a siglip_vision"),
        (config(vision_feature_layer=9), r"vision_feature_layer is 9, of 3 layers"),
        (config(video_token_index=5), r"the placeholder of a frame is token 5, which is no special token"),
        # code of others
        (config(auto_map={"AutoModel": "evil.Model"}), r"config\.json names code of its own \(auto_map\), which is"),
        (config("text_config", attn_implementation="hub/kernel"), r"'hub/kernel' is code of a hub, which is never run"),
        (write("adapter_config.json", "{}"), r"adapter_config\.json: this is an adapter"),
        (as_pickle, r"no model\.safetensors \(found .*pytorch_model\.bin.*\): weights are read .* safetensors only"),
        # weights
        (write(WEIGHTS, LFS), r"model\.safetensors is no whole safetensors file: .*git lfs pull"),
        (write(WEIGHTS, PAGE), r"model\.safetensors is no whole safetensors file: it holds a web page"),
        (write(WEIGHTS, ""), r"model\.safetensors is no whole safetensors file: it is empty"),
        (cut, r"model\.safetensors is no whole safetensors file: .*cut after [\d,]+ bytes"),
        (remove(WEIGHTS), r"no model\.safetensors \(found config\.json"),
        (in_parts({"x": "part-1.safetensors"}), r"'part-1\.safetensors', which model\.safetensors\.index\.json names"),
        (in_parts({"x": "../other/model.safetensors"}), r"names '\.\./other/model\.safetensors', a file elsewhere"),
        (in_parts(None), r"names no files \(weight_map\)"),
        (one_number(float("nan")), r"layers\.1\.mlp\.up_proj\.weight holds numbers that are NaN or infinite"),
        (one_number(float("-inf")), r"holds numbers that are NaN or infinite"),
        *((as_type(dtype), r"are numbers of type \w+; one of F32, F16, BF16 is expected") for dtype in NO_FLOATS),
        (weights(other_shape), r"1 weights have another shape .*image_newline is \(32,\), \(64,\) was expected"),
        (one_layer_more, r"weights of layers that config\.json does not have: .*layers\.3\."),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"its weights are stored quantized"),
        # the tokenizer
        (remove("tokenizer.json"), r"no tokenizer\.json \(found config.*\), so there is no vocabulary"),
        (remove("tokenizer.json", "tokenizer_config.json"), r"no tokenizer\.json"),
        (write("tokenizer.json", PAGE), r"tokenizer\.json cannot be read as JSON: it holds a web page"),
        (write("tokenizer.json", LFS), r"tokenizer\.json .*Git LFS pointer"),
        (write("tokenizer.json", "{}"), r"no tokenizer can be loaded"),
        (write("tokenizer_config.json", "[1]"), r"tokenizer_config\.json: a mapping was expected, found list"),
        (write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["e.T", "e.T"]}}'), r"names code of its own"),
        (write("tokenizer_config.json", "{}"), r"its tokenizer has no padding token"),
        (tokenizer_config(tokenizer_class="ByT5Tokenizer"), r"ByT5Tokenizer does not read tokenizer\.json"),
        (tokenizer_config(model_max_length="x"), r"no tokenizer can be loaded"),
        # one that reads nothing, or the same of every text
        (
            tokenizer_json("model", vocab={}, merges=[]),
            r"knows 0% of the characters of the wording 'Bright\?', .*its folder holds config\.json",
        ),
        (replaced(".", ""), r"knows 0% of the characters of the wording 'Bright\?'"),
        (replaced(r"\w+", "e"), r"knows 14% of the characters of the wording 'Bright\?'"),
        (replaced(r"\w(?=\w)", ""), r"knows 29% of the characters of the wording 'Bright\?'"),
        (
            tokenizer_json(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Removed", "invert": False}
            ),
            r"knows 14% of the characters of the wording 'Bright\?'",
        ),
        (one_id_for_all, r"knows \d+% of the characters of the wording 'Bright\?'"),
        (word_pieces("##b ##r ##i ##g ##h ##t"), r"knows 0% of the characters of the wording 'Bright\?'"),
        (unknown_unnamed, r"knows 0% of the characters of the wording 'Bright\?'"),
        (whole_words, r"knows 0% of the characters of the wording 'Bright\?'"),
        (more_tokens, r"its tokenizer has [\d,]+ tokens, its embedding [\d,]+ rows: they are of two models"),
    ],
)  # fmt: skip
def test_a_backbone_that_is_not_whole_is_one_line(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(AgentPSError, match=message) as refused:
        read(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert str(folder) in str(refused.value)


def test_weights_in_parts_and_in_sixteen_bits_are_read(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name].bfloat16() for name in held}, folder / part)
    in_parts({name: part for part, held in parts.items() for name in held})(folder)
    read(folder)


def test_what_a_language_model_has_beside_its_layers_may_be_left_over(folder: Path) -> None:
    """The published checkpoints carry the head over the vocabulary, which is not used."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"lm_head.weight": torch.zeros(3, 64)}, folder / WEIGHTS)
    read(folder)


def test_no_code_of_a_backbone_runs_even_at_a_terminal_that_says_yes(folder: Path) -> None:
    (folder / "evil.py").write_text("open('ran', 'w').write('x')\n")
    config(auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]})(folder)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from model.backbone import load_tokenizer\nfrom model.settings import BackboneSettings\n"
        "load_tokenizer(BackboneSettings(name=sys.argv[2]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY), str(folder)],
        cwd=folder,
        input="y\n" * 9,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "which is never run" in ended.stderr
    assert "[y/N]" not in ended.stdout + ended.stderr
    assert not (folder / "ran").exists()


def test_a_hubs_backbone_is_read_from_its_cache_where_the_hub_cannot_be_reached(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--own--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport torch\n"
        "from model.backbone import load_backbone, load_config, load_tokenizer\n"
        "from model.errors import ConfigError\nfrom model.settings import BackboneSettings\n"
        "there, none = (BackboneSettings(name=name, revision='a' * 40) for name in ('own/tiny', 'own/none'))\n"
        "load_backbone(there, load_tokenizer(there), torch.float32)\n"
        "try:\n    load_config(none)\nexcept ConfigError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.startswith("backbone own/none: no config.json (or its hub cannot be reached)"), ended.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_none_is_found_anywhere(dtype: torch.dtype) -> None:
    for place in (0, 17, 4095):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensor = torch.ones(4096, dtype=dtype)
            assert all_finite(tensor)
            tensor[place] = value
            assert not all_finite(tensor)
    assert all_finite(torch.ones(0, dtype=dtype))


def test_the_share_of_a_text_that_a_vocabulary_knows(tiny_backbone: BackboneSettings, folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_backbone)
    assert [known_share(tokenizer, text) for text in ("a walk", "今天 🌊", "<ans>", " \n", "")] == [1.0] * 5
    whole_words(folder)
    words = load_tokenizer(BackboneSettings(name=str(folder)))
    assert known_share(words, "hello") == 1
    assert known_share(words, "hello world hello") == 10 / 15
    assert known_share(words, "今天") == 0
    word_pieces("b r ##r ##i ##g ##e")(folder)
    pieces = load_tokenizer(BackboneSettings(name=str(folder)))
    assert [known_share(pieces, text) for text in ("brie", "BRIÉ", "b rigg", "brie x", "x")] == [1, 1, 1, 4 / 5, 0]
