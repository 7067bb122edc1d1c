"""Measures AgentPS beside its public peers; `run.sh` makes their environments first.

.venv/bin/python -m benchmarks.peers [network] [annotation] [--rounds 3] [--page]

Writes `network.json` and `annotation.json` in this folder, and of each a table in docs/.
"""

from __future__ import annotations

import argparse

from benchmarks import record
from benchmarks.peers import annotation, network

PARTS = {"network": network, "annotation": annotation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{' '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="measure nothing: the tables again, of the records")
    options = parser.parse_args()
    for part in [PARTS[name] for name in options.parts or PARTS]:
        if not options.page:
            part.measure(options.rounds)
        record.put({"peers": part.table()}, part.PAGE)


if __name__ == "__main__":
    main()
