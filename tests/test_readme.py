"""What the README says of the variants is what `benchmarks/variants.py` measured."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = json.loads((ROOT / "benchmarks" / "variants.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def variants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("variants", ROOT / "benchmarks" / "variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def means(metric: str) -> dict[str, float]:
    """The mean over the seeds, by variant; every variant was run on the same seeds."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for record in RECORDS:
        values[record["variant"]][record["seed"]] = record["metrics"][metric]
    assert len({tuple(sorted(seeds)) for seeds in values.values()}) == 1
    return {variant: mean(seeds.values()) for variant, seeds in values.items()}


def test_the_readme_has_the_table_of_the_committed_records(variants: ModuleType) -> None:
    assert variants.table(RECORDS) in README


def test_the_default_variant_does_best_on_val_over_the_seeds() -> None:
    default = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text(encoding="utf-8"))["variant"]
    on_val = means("best_val_average_precision")
    assert default == max(on_val, key=on_val.__getitem__)


@pytest.mark.parametrize(
    "page", sorted({"README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))})
)
def test_every_local_link_leads_to_a_file(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []
