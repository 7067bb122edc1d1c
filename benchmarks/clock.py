"""`agentps` on a clock of its own: `python -m benchmarks.clock FILE desk --port 0`, as `agentps desk --port 0`.

FILE holds a time (ISO 8601, with a zone). The clock stands there at first and goes on from there; when the file is
changed it jumps. What is measured in seconds (`time.monotonic`) is not touched. Needs
`pip install time-machine`, which nothing else does.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

from model.files import write_whole

#: Seconds between two looks at the file, and after which all have seen a change.
_LOOK, _SEEN = 0.02, 0.5


def move(file: Path, to: datetime) -> None:
    """Returns when every clock of the file stands there."""
    write_whole(file, to.isoformat())
    time.sleep(_SEEN)


def main() -> None:
    from cli.main import main as agentps

    try:
        time_machine = importlib.import_module("time_machine")
    except ModuleNotFoundError:
        raise SystemExit("this benchmark needs a clock that can be set: `pip install time-machine`") from None

    file = Path(sys.argv[1])
    shown = file.read_text(encoding="utf-8")
    clock = time_machine.travel(datetime.fromisoformat(shown), tick=True).start()

    def follow(shown: str) -> None:
        while True:
            time.sleep(_LOOK)
            if (found := file.read_text(encoding="utf-8")) != shown:
                clock.move_to(datetime.fromisoformat(found))
                shown = found

    threading.Thread(target=follow, args=(shown,), daemon=True).start()
    sys.argv = ["agentps", *sys.argv[2:]]
    agentps()


if __name__ == "__main__":
    main()
