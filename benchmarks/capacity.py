"""What a hundred million posts a day take, and what the paper's trainings cost: from rates that were measured.

    .venv/bin/python -m benchmarks.capacity

Writes `benchmarks/capacity.json` and the tables of `docs/capacity.md`. It measures nothing but a record's size; the
rates are those of `benchmarks/gpu.json`, `preprocessing.json` and `docs/store.md`. A day is simulated in steps of ten
seconds: posts come, wait before each part, and leave it as fast as it works.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import put, table, write
from model.task import Task, load_task
from scoring.record import Answer, Record
from steps.annotate.prices import PRICES, load_prices, prices_as_of, request_tokens
from steps.annotate.prompt import build_questions
from steps.paths import REPOSITORY

PAGE, HERE = REPOSITORY / "docs" / "capacity.md", Path(__file__).parent
#: Dollars, the lowest and the highest that was listed on the day named, as others wrote it down: none was checked with
#: the provider. Put your own here.
PRICE_TABLE = {
    "A100 80 GB, hour": (
        1.39,
        3.43,
        "RunPod's Community Cloud; AWS p4de.24xlarge, an eighth. Read 2026-11-09: "
        "github.com/datareceipts/data-receipts, 109-gpu-pricing",
    ),
    "H200 141 GB, hour": (
        3.45,
        10.44,
        "Civo, read 2026-10-24: github.com/renshuBTC/compute-screener, data/gpu_providers_latest.csv; "
        "Google a3-ultragpu-8g, an eighth, 2026-10-13: huggingface.co/datasets/tanod/cloud-gpu-list-prices",
    ),
    "CPU core, hour": (
        0.02,
        0.043,
        "c5.2xlarge, an eighth, spot and on demand: AWS's own example, which it calls not current, "
        "docs.aws.amazon.com/autoscaling/ec2/userguide/weights-spot-price-per-unit-hour-example.html",
    ),
    "database server, hour": (0.50, 2.00, "not confirmed, an estimate of ours: 16 cores, 64 GB"),
    "TB stored, month": (10.0, 23.0, "not confirmed, an estimate of ours: object stores"),
    "million reads of an object store": (0.0, 0.40, "not confirmed, an estimate of ours: own store, AWS S3"),
}
POSTS_A_DAY = 100e6
IMAGES, KILOBYTES = 5.25, 417  # a post's, as in benchmarks/gpu.py; an image's, a phone's JPEG of quality 85
STORE_RATE = 2500.0  # records per second: 500 take 0.1 to 0.3 s (docs/store.md)
NETWORK = 25e9 / 8  # bytes per second of one machine's card
FETCH_SECONDS, READERS, BATCH = 0.02, 8, 64  # of an image from a store near by: assumed; of one worker
EPOCHS, TRAIN_POSTS = 5, 150_000  # the paper's trainings
CORES_A_GPU = 8  # that come with it
PEAK = 989 / 312  # of an H200 against an A100, dense bfloat16
SPARE = 1.3  # GPUs that follow the day's wave, against what the posts of the moment need
STEP = 10.0  # seconds of the simulation
DAY = 86_400


@dataclass(frozen=True)
class Part:
    name: str
    #: Posts per second of one unit.
    rate: float
    #: That it does at the same time; None: as many as are bought.
    most: int | None = None


def parts() -> list[Part]:
    gpu = json.loads((HERE / "gpu.json").read_text())["llava-ov-0.5b"]["scoring"]["posts_per_s"]
    frames = json.loads((HERE / "preprocessing.json").read_text())["frames"]
    decode_ms = next(f["ours_ms"] for f in frames if f["picture"] == "phone, 1080 x 1440, JPEG quality 85")
    return [
        Part("network, cards of 25 Gbit/s", NETWORK / (IMAGES * KILOBYTES * 1000)),
        Part("decoding, cores", 1000 / decode_ms / IMAGES),
        Part("GPUs (H200, 0.5B)", gpu),
        Part("store, one database", STORE_RATE, most=1),
    ]


def arrivals(posts: float, rng: np.random.Generator) -> np.ndarray:
    """Posts in each step of a day: a wave with its peak in the evening, and twice as many for half an hour then."""
    clock = np.arange(0, DAY, STEP)
    wave = 1 + 0.6 * np.cos(2 * np.pi * (clock / DAY - 20 / 24))
    burst = np.where((clock >= 20 * 3600) & (clock < 20.5 * 3600), 2.0, 1.0)
    mean = posts / wave.sum() * wave * burst
    return rng.poisson(mean).astype(np.float64)


def simulate(coming: np.ndarray, rates: list[float], outage: tuple[int, float]) -> tuple[list[float], list[float]]:
    """The longest wait before each part, and the share of posts that waited for all parts together over a minute.

    Args:
        rates: posts per second, of each part.
        outage: a part, and the share of it that is away for twenty minutes from half past eight.
    """
    backlog = np.zeros(len(rates))
    longest, late = np.zeros(len(rates)), 0.0
    for step, posts in enumerate(coming):
        away = 20.5 * 3600 <= step * STEP < 20.5 * 3600 + 1200
        now = np.array(rates) * STEP
        if away:
            now[outage[0]] *= 1 - outage[1]
        for part in range(len(rates)):
            backlog[part] += posts
            posts = min(backlog[part], now[part])
            backlog[part] -= posts
        waits = backlog / now * STEP
        longest = np.maximum(longest, waits)
        late += coming[step] * (waits.sum() > 60)
    return longest.tolist(), [late / coming.sum()]


def plans(rng: np.random.Generator) -> list[dict[str, Any]]:
    """For the mean, for the evening, for the burst: units, waits and money."""
    mean = POSTS_A_DAY / DAY
    found = []
    for name, rate in (
        ("the mean", mean),
        ("the evening", 1.6 * mean),
        ("the burst", 3.2 * mean),
        ("a third more", 4.2 * mean),
    ):
        all_parts = parts()
        units = [part.most or int(np.ceil(rate / part.rate)) for part in all_parts]
        given = [part.rate * count for part, count in zip(all_parts, units, strict=True)]
        longest, (late,) = simulate(arrivals(POSTS_A_DAY, rng), given, outage=(2, 0.1))
        found.append({"for": name, "posts_per_s": rate, "units": units, "longest_wait_s": longest, "late": late})
    return found


def first_to_give_way(rng: np.random.Generator) -> list[dict[str, Any]]:
    """The plan for the burst, under more and more posts: what waits over a minute first."""
    all_parts = parts()
    rate = 3.2 * POSTS_A_DAY / DAY
    given = [part.rate * (part.most or int(np.ceil(rate / part.rate))) for part in all_parts]
    rows = []
    for times in (0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5):
        longest, _ = simulate(arrivals(times * POSTS_A_DAY, rng), given, outage=(2, 0.0))
        rows.append({"posts": times * POSTS_A_DAY, "longest_wait_s": longest})
    return rows


def record_bytes(task: Task) -> int:
    answers = {q.id: Answer(answer="yes", probability=0.9876) for q in task.questions}
    record = Record(
        post_id="64f1c0ffee64f1c0ffee64f1", model_name="agentps-ucc", model_version="12", task="ucc",
        policy_version="1", latency_ms=123.456, error=None, input_sha256="0" * 64,
        scored_at=datetime.now(UTC), logit=1.234567, score=0.7712345,
        decisions={"p80": True, "p90": False}, answers=answers,
    )  # fmt: skip
    return len(record.model_dump_json())


def money(hours: float, what: str) -> list[float]:
    low, high, _ = PRICE_TABLE[what]
    return [low * hours, high * hours]


def jobs(task: Task) -> dict[str, dict[str, Any]]:
    """GPU hours and dollars of the paper's trainings, of annotating 150,000 posts, of scoring a million a day."""
    gpu = json.loads((HERE / "gpu.json").read_text())
    found: dict[str, dict[str, Any]] = {}
    for name in ("llava-ov-0.5b", "llava-ov-7b"):
        hours = EPOCHS * TRAIN_POSTS / gpu[name]["training"]["posts_per_s"] / 3600
        found[f"training, {name}, one H200"] = {"hours": hours, "dollars": money(hours, "H200 141 GB, hour")}
        found[f"training, {name}, one A100 (by its peak)"] = {
            "hours": PEAK * hours, "dollars": money(PEAK * hours, "A100 80 GB, hour")
        }  # fmt: skip
        hours = 1e6 / gpu[name]["scoring"]["posts_per_s"] / 3600
        found[f"scoring a million posts, {name}, one H200"] = {
            "hours": hours,
            "dollars": money(hours, "H200 141 GB, hour"),
        }
    title, text = "A walk along the sea", "We went out at seven to see the sun rise. " * 4
    for model in ("gpt-4o", "gpt-4o-mini"):
        price = load_prices()[model]
        words = build_questions(task, title, text, round(IMAGES))
        tokens = request_tokens(words, IMAGES * price.image.base, len(task.questions), 64)
        online, batch = (TRAIN_POSTS * tokens.dollars(price, batch=half) for half in (False, True))
        found[f"annotating 150,000 posts, {model}, batch interface to online"] = {
            "tokens": tokens.prompt + tokens.completion,
            "dollars": [batch, online],
        }
    return found


def _range(dollars: list[float]) -> str:
    low, high = (f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in dollars)
    return f"{low} to {high}"


def _seconds(value: float) -> str:
    return "0" if value < 0.5 else f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def render(found: dict[str, Any]) -> dict[str, str]:
    all_parts = parts()
    names = [part.name for part in all_parts]
    short = [name.split(",")[0].split(" ")[0] for name in names]
    mean = POSTS_A_DAY / DAY
    carries = [
        [part.name, f"{part.rate:,.0f}", f"{mean / part.rate:,.1f}", f"{3.2 * mean / part.rate:,.1f}"]
        for part in all_parts
    ]
    days = [
        [plan["for"], f"{plan['posts_per_s']:,.0f}", *plan["units"], *map(_seconds, plan["longest_wait_s"]),
         f"{plan['late']:.1%}"]
        for plan in found["plans"]
    ]  # fmt: skip
    growth = [[f"{row['posts'] / 1e6:,.0f} M", *map(_seconds, row["longest_wait_s"])] for row in found["growth"]]
    priced = [
        [name, f"{job['hours']:,.1f}" if "hours" in job else "", f"{job['tokens']:,.0f}" if "tokens" in job else "",
         _range(job["dollars"])]
        for name, job in found["jobs"].items()
    ]  # fmt: skip
    day = [[name, amount, _range(dollars)] for name, amount, dollars in found["day"]]
    prices = [[name, f"{low:.2f} to {high:.2f}", source] for name, (low, high, source) in PRICE_TABLE.items()]
    return {
        "carries": table(["one unit of", "posts/s", "units for the mean", "for the burst"], carries),
        "days": table(["bought for", "posts/s", *short, *(f"wait for {name}" for name in short), "late"], days),
        "growth": table(["posts a day", *(f"wait for {name}" for name in short)], growth),
        "jobs": table(["job", "GPU hours", "tokens a request", "dollars"], priced),
        "day": table(["of a day", "how much", "dollars"], day),
        "prices": table(["what", "dollars", "source"], prices),
    }


def day(units: list[int], bytes_: int) -> list[tuple[str, str, list[float]]]:
    """The money of a day for these units. GPUs come with cores, which decode."""
    _, cores, gpus, _ = units
    bought = max(0, cores - gpus * CORES_A_GPU)
    following = SPARE * POSTS_A_DAY / DAY / parts()[2].rate
    grown = POSTS_A_DAY * bytes_ / 1e12
    reads = POSTS_A_DAY * IMAGES / 1e6
    return [
        (
            "GPUs, as many all day",
            f"{gpus} H200, with {gpus * CORES_A_GPU} cores",
            money(24 * gpus, "H200 141 GB, hour"),
        ),
        (
            "or as many as the hour needs",
            f"{following:.0f} H200 on average",
            money(24 * following, "H200 141 GB, hour"),
        ),
        ("cores beside them", f"{bought}", money(24 * bought, "CPU core, hour")),
        ("store", "1 database and its standby", money(48, "database server, hour")),
        ("reading pictures", f"{reads:,.0f} million", money(reads, "million reads of an object store")),
        ("records kept for 30 days", f"{30 * grown:.1f} TB as JSON", money(30 * grown / 30, "TB stored, month")),
    ]


def main() -> None:
    rng, task = np.random.default_rng(0), load_task("ucc")
    size = record_bytes(task)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "annotators_prices_as_of": prices_as_of(PRICES),
        "record_bytes": size,
        "worker_posts_per_s": BATCH / (BATCH * IMAGES * FETCH_SECONDS / READERS + BATCH / parts()[2].rate),
        "plans": plans(rng),
        "growth": first_to_give_way(rng),
        "jobs": jobs(task),
    }
    burst = next(plan for plan in found["plans"] if plan["for"] == "the burst")
    found["day"] = day(burst["units"], size)
    write(HERE / "capacity.json", found)
    put(render(found), PAGE)


if __name__ == "__main__":
    main()
