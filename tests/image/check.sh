#!/usr/bin/env bash
# Checks what can be checked of the image without a container engine.
#
#   check.sh [--cuda] [BINARY]     BINARY: what would be copied into the image; without it, the newest build
#
# The Dockerfile: pinned bases, a user that is not root, a health command, labels, an entry point that is what is copied,
# sources that are there and let through by .dockerignore. The binary: its dynamic libraries are the C library's own (for
# CUDA, the driver's and the toolkit's, too), none newer than the base has. The container: the binary and its libraries
# alone in a read-only root file system with an empty /tmp, as user 65532 without rights: it checks a configuration that
# the chart made (when helm is there), works as a replaying worker, answers its health command and probes, and ends by
# SIGTERM with 0. With ASSAY_EXPOSITION set, that worker's /metrics are written to this file.
set -euo pipefail
cd "$(dirname "$0")/../.."

variant=cpu
if [[ "${1:-}" == --cuda ]]; then variant=cuda; shift; fi
target="${CARGO_TARGET_DIR:-$HOME/.cache/assay-target}"
# shellcheck disable=SC2012  # our own file names
binary="${1:-$(ls -t "$target"/{release,debug}/assay 2>/dev/null | head -n 1 || true)}"

say() { printf 'image: %s\n' "$*"; }
die() { printf 'image: FAILED: %s\n' "$*" >&2; exit 1; }
passed=0
ok() { passed=$((passed + 1)); }

# ------------------------------------------------------------------------------------------------- the Dockerfile

# The lines of a stage, continued lines joined, without comments.
stage() {
  sed -e '/^ *#/d' Dockerfile | sed -e ':a' -e '/\\$/N; s/\\\n//; ta' |
    awk -v name="$1" '/^FROM /{ inside = ($NF == name) } inside'
}

dockerfile() {
  local image stage_name line source origin top
  while read -r image; do
    [[ "$image" == *@sha256:* || "$image" =~ :[0-9]+\.[0-9]+ ]] || die "base $image is not pinned to a release or digest"
  done < <(sed -n 's/^ARG [A-Z_]*IMAGE=//p' Dockerfile)
  ok
  while read -r image; do
    [[ "$image" == '${'*'_IMAGE}' ]] || grep -q "^FROM .* AS $image\$" Dockerfile || die "FROM $image is neither pinned above nor a stage"
  done < <(sed -n 's/^FROM \([^ ]*\).*/\1/p' Dockerfile)
  ok
  for stage_name in cpu cuda; do
    line="$(stage "$stage_name")"
    grep -qE '^USER [1-9][0-9]*:[1-9][0-9]*$' <<<"$line" || die "$stage_name: no USER by number that is not root"
    grep -qE '^HEALTHCHECK .*CMD \["/usr/local/bin/assay", "health"\]$' <<<"$line" || die "$stage_name: no health command"
    grep -qE '^ENTRYPOINT \["/usr/local/bin/assay"\]$' <<<"$line" || die "$stage_name: the entry point is not the binary"
    grep -qE "^COPY --from=build-$stage_name [^ ]+ /usr/local/bin/assay\$" <<<"$line" || die "$stage_name: the binary is not copied"
    for label in version revision; do
      grep -q "org.opencontainers.image.$label=" <<<"$line" || die "$stage_name: no label $label"
    done
    ok
  done
  # What is copied exists, and .dockerignore lets it through.
  while read -r source; do
    [[ -e "$source" ]] || die "COPY $source: there is no such file"
    grep -qx "!${source%%/*}" .dockerignore || die "COPY $source: .dockerignore keeps it out"
  done < <(sed -n '/^COPY --from/d; s/^COPY \(.*\) [^ ]*$/\1/p' Dockerfile | tr ' ' '\n' | sort -u)
  ok
  # Files of other folders that the sources include are copied as well.
  while read -r top; do
    grep -qE "^COPY $top $top\$" Dockerfile || die "the sources include files of $top/, which is not copied"
  done < <(grep -rhoE 'include_(str|bytes)!\("(\.\./)+[a-z]+/' src | grep -oE '[a-z]+/$' | tr -d / | sort -u)
  ok
  origin="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
  grep -q "rust:$origin" Dockerfile || die "the builder is not Rust $origin, as Cargo.toml asks"
  ok
}

# ----------------------------------------------------------------------------------------------------- the binary

# The C library of the variant's base: Debian 12, Ubuntu 24.04.
declare -A glibc=([cpu]=2.36 [cuda]=2.39)

libraries() {
  local library allowed='^(libc|libm|libdl|librt|libpthread|libgcc_s|ld-linux-[a-z0-9-]+)\.so\.[0-9]+$' newest
  [[ "$variant" == cpu ]] || allowed="${allowed%\$}\$|^lib(cuda|cudart|cublas|cublasLt|curand|nvrtc)\.so\.[0-9]+\$"
  while read -r library; do
    [[ "$library" =~ $allowed ]] || die "$binary needs $library, which the base does not have"
  done < <(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
  ok
  newest="$(readelf -V "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)"
  [[ "$(printf '%s\n' "${newest#GLIBC_}" "${glibc[$variant]}" | sort -V | tail -n 1)" == "${glibc[$variant]}" ]] ||
    die "$binary needs $newest, the base has ${glibc[$variant]}"
  ok
}

# -------------------------------------------------------------------------------------------------- the container

work="" worker=""
# shellcheck disable=SC2317  # called by trap
clean() {
  [[ -z "$worker" ]] || kill -KILL "$worker" 2>/dev/null || true
  [[ -z "$work" ]] || rm -rf "$work"
}
trap clean EXIT

# What the last stage of the Dockerfile makes, with the configuration mounted.
root_file_system() {
  local root="$work/root" library
  mkdir -p "$root"/{usr/local/bin,etc/assay/config,etc/assay/jobs,models,tmp,dev,proc,data}
  install -m 0755 "$binary" "$root/usr/local/bin/assay"
  while read -r library; do
    install -D "$library" "$root$library"
  done < <(ldd "$binary" | grep -o '/[^ ]*')
  cp -r models/demo-clip "$root/models/demo"
  cp jobs/product-embedding.toml "$root/etc/assay/jobs/"
  printf '{"id":"a","title":"A mug","event_time":"2026-01-01T00:00:00Z"}\n' >"$root/data/products.jsonl"
  cat >"$root/etc/assay/config/config.toml" <<TOML
jobs = "/etc/assay/jobs"
[source]
kind = "replay"
[source.replay.topics]
products = "/data/products.jsonl"
[tables]
url = "file:///tmp/tables"
[tables.commit]
interval = "100ms"
[models.demo]
path = "/models/demo"
[server]
address = "0.0.0.0:$1"
TOML
  chmod -R a+rX,go-w "$work"
}

# Becomes the binary in it: a mount namespace, read-only but for an empty /tmp, then user 65532 without any right.
# Every step is an exec, so the process that was started is the one that gets signals.
contained() {
  # shellcheck disable=SC2016  # the inner shell expands
  exec unshare --mount -- bash -c '
    set -e
    root=$1
    shift
    mount --bind "$root" "$root"
    for device in null urandom; do
      touch "$root/dev/$device"
      mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount --rbind /proc "$root/proc"
    mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/tmp"
    mount -o remount,bind,ro "$root"
    exec env -i HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --no-new-privs chroot --userspec=65532:65532 --groups=65532 "$root" /usr/local/bin/assay "$@"
  ' contained "$work/root" "$@"
}

free_port() {
  local port=$((21000 + RANDOM % 8000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

# await SECONDS COMMAND...
await() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || return 1
    kill -0 "$worker" 2>/dev/null || return 1
    sleep 0.2
  done
}

ask() { curl --fail --silent --show-error --noproxy '*' --max-time 5 "http://127.0.0.1:$1$2"; }

# What the chart mounts, looked at by the binary itself.
configuration_of_the_chart() {
  local name manifests
  if ! tests/kube/tools.sh have lint >/dev/null 2>&1 || ! python3 -c 'import yaml' 2>/dev/null; then
    say "LEFT OUT: configurations made by the chart (needs helm, see tests/helm/lint.sh, and Python's yaml)"
    return
  fi
  eval "$(tests/kube/tools.sh env)"
  for name in cpu gpu zero secure cronjob many; do
    manifests="$work/manifests"
    helm template assay helm --values "helm/ci/$name-values.yaml" >"$manifests"
    rm -rf "$work/root/etc/assay"/{config,jobs} "$work/root/models"
    python3 - "$manifests" "$work/root" <<'PYTHON'
import pathlib, sys, yaml
root = pathlib.Path(sys.argv[2])
for folder in ["etc/assay/config", "etc/assay/jobs"]:
    (root / folder).mkdir(parents=True)
for doc in yaml.safe_load_all(open(sys.argv[1])):
    if not doc or doc["kind"] != "ConfigMap":
        continue
    for file, text in doc["data"].items():
        if file == "config.toml":
            (root / "etc/assay/config" / file).write_text(text)
        elif "assay/job" in doc["metadata"]["labels"]:
            (root / "etc/assay/jobs" / file).write_text(text)
PYTHON
    # The models that it names, as far as a check looks at them.
    while read -r model; do
      mkdir -p "$work/root$model"
      cp models/demo-clip/config.json "$work/root$model/"
    done < <(sed -n 's/^models\..*\.path = "\(.*\)"/\1/p' "$work/root/etc/assay/config/config.toml")
    chmod -R a+rX "$work/root"
    (contained --config /etc/assay/config/config.toml check) >"$work/said" 2>&1 ||
      die "the configuration of helm/ci/$name-values.yaml: $(cat "$work/said")"
    ok
  done
}

container() {
  local port said
  if [[ "$(id -u)" != 0 ]] || ! unshare --mount -- mount -t tmpfs tmpfs /mnt 2>/dev/null; then
    say "LEFT OUT: the container, which needs root and the right to mount"
    return
  fi
  work="$(mktemp -d)"
  port="$(free_port)"
  root_file_system "$port"
  said="$( (contained --version) 2>&1)" || die "it does not start: $said"
  [[ "$said" == "assay "* ]] || die "--version says $said"
  ok
  (contained health) >/dev/null 2>&1 && die "the health command finds a worker where there is none"
  ok

  (contained --config /etc/assay/config/config.toml run --job product-embedding) >"$work/log" 2>&1 &
  worker=$!
  await 120 ask "$port" /readyz || die "the worker does not become ready: $(tail -n 5 "$work/log")"
  ask "$port" /startupz >/dev/null && ask "$port" /healthz >/dev/null || die "probes fail"
  # shellcheck disable=SC2317  # called by await
  committed() { ask "$port" /metrics | grep -q '^assay_rows_committed_total{.*table="results"} 1$'; }
  await 60 committed || die "the row is not committed: $(tail -n 5 "$work/log")"
  ok
  (contained --config /etc/assay/config/config.toml health) >/dev/null || die "the health command fails beside a worker that lives"
  [[ "$(stat -c %u "/proc/$worker")" == 65532 ]] || die "the worker is user $(stat -c %u "/proc/$worker")"
  grep -qE '^CapEff:\s0+$' "/proc/$worker/status" || die "the worker has rights: $(grep Cap "/proc/$worker/status")"
  ok
  ask "$port" /metrics >"${ASSAY_EXPOSITION:-$work/exposition}"
  kill -TERM "$worker"
  wait "$worker" || die "SIGTERM ends it with $?: $(tail -n 5 "$work/log")"
  worker=""
  ok
  configuration_of_the_chart
}

dockerfile
if [[ -z "$binary" || ! -x "$binary" ]]; then
  say "$passed checks passed. LEFT OUT: the binary, because there is none yet (cargo build)"
  exit 0
fi
libraries
container
say "$passed checks passed ($binary)"
