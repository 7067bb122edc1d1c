#!/usr/bin/env bash
# A user's session on a team's stack: session.sh FILE.env RUN_FILE [FOLDER]
# Trains, has the service take the champion, scores a post over HTTP, trains again, and rolls back.
# RUN_FILE lets the gate take any version: promote: {stale_days: 0, stale_tolerance: 1, max_slice_drop: 1, …}
# FILE.env is what `python -m infra.team user NAME --train` wrote; FOLDER keeps this user's local files.
set -euo pipefail
. "$1"
run=$(realpath "$2")
export AGENTPS_HOME=${3:-$HOME/.agentps-team} ZENML_CONFIG_PATH=${3:-$HOME/.agentps-team}/zenml
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=${BIN:-.venv/bin}
mkdir -p "$AGENTPS_HOME"
second="$AGENTPS_HOME/second.yaml"
{ cat "$run"; echo 'seed: 1'; } > "$second"

# serves VERSION: wait until the service says that it scores with this version
serves() {
    for _ in $(seq 300); do
        grep -q "\"version\": *\"$1\"" <<< "$(curl -s "$SERVICE_URL/ready")" && return
        sleep 2
    done
    echo "the service does not serve version $1: $(curl -s "$SERVICE_URL/ready")" >&2
    return 1
}
score() {
    curl -sf -H "Authorization: Bearer $SERVICE_KEY" --json @"$AGENTPS_HOME/post.json" "$SERVICE_URL/score"
}

"$bin/zenml" pipeline run agentps_training -c "$run"
"$bin/agentps" fetch -c "$run" # every file of the champion is held to its sha256
first=$("$bin/agentps" history -c "$run" --on "$(date -u +%F\ %T -d '+1 minute')")
image=$(find "$AGENTPS_HOME/sample" -name '*.jpg' -print -quit)
printf '{"posts": [{"post_id": "1", "title": "A walk", "images": ["data:image/jpeg;base64,%s"]}]}' \
    "$(base64 -w0 "$image")" > "$AGENTPS_HOME/post.json"
serves "$first"
score > "$AGENTPS_HOME/first.json"

"$bin/zenml" pipeline run agentps_training -c "$second"
next=$((first + 1))
champion=$("$bin/agentps" history -c "$run" --on "$(date -u +%F\ %T -d '+1 minute')")
[ "$champion" = "$next" ] || { echo "the gate kept version $champion: see the top of this file" >&2 && exit 1; }
serves "$next"
score > "$AGENTPS_HOME/second.json"

"$bin/agentps" rollback --because "the session's end" -c "$run"
serves "$first"
score > "$AGENTPS_HOME/again.json"
echo "version $first, then $next, then $first again: scored by each"
