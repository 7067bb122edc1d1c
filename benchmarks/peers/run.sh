#!/usr/bin/env bash
# Measures AgentPS beside its public peers (`make bench-peers`), and writes the records and the tables in docs/.
# Each peer has an environment of its own in .agentps/peers/ (6 GB, made once); options go to benchmarks.peers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# environment NAME REQUIREMENTS...: each word is one call of pip, its requirements separated by commas
environment() {
    local place=.agentps/peers/$1
    test ! -e "$place/installed" || return 0
    .venv/bin/python -m venv --clear "$place"
    for requirements in "${@:2}"; do
        # shellcheck disable=SC2086
        "$place/bin/python" -m pip --disable-pip-version-check install --quiet ${requirements//,/ }
    done
    touch "$place/installed"
}

# torch and torchvision first: ms-swift would take others, which do not fit each other
environment swift torch==2.14.1,torchvision==0.29.1 ms-swift==4.6.0
# litellm is a dependency of curator; its release 1.107.0 was reported as compromised
environment curator "bespokelabs-curator==0.1.31,litellm<1.107"
.venv/bin/python -m benchmarks.peers "$@"
