#!/usr/bin/env bash
# All servers of the tests at once, for use by hand: Kafka and an S3 server on loopback, with their data below one folder.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'EOT'
services.sh up DIR [--brokers 1|3] [--secure] [--owner PID]   start both below DIR, write DIR/env and DIR/config.toml
services.sh down DIR                                          end both, keep the files
services.sh topic DIR NAME PARTITIONS                         create a topic
EOT
}

up() { # DIR FLAG...
  local dir=$1 owner=() flag
  shift
  for flag in "$@"; do [[ $flag != --owner ]] || owner=(--owner "${@: -1}"); done
  mkdir -p "$dir"
  "$HERE/kafka.sh" up "$dir/kafka" "$@" >/dev/null
  "$HERE/objectstore.sh" up "$dir/objectstore" "${owner[@]}" >/dev/null || { "$HERE/kafka.sh" down "$dir/kafka"; exit 1; }
  cat "$dir/kafka/env" "$dir/objectstore/env" >"$dir/env"
  configuration "$dir" >"$dir/config.toml"
  cat "$dir/env"
}

# What `assay --config DIR/config.toml` needs to work with the two.
configuration() ( # DIR
  . "$1/env"
  cat <<EOT
[source.kafka]
bootstrap_servers = "$KAFKA_BOOTSTRAP"

[tables]
url = "$OBJECTSTORE_URL/tables"

[tables.options]
aws_endpoint = "$AWS_ENDPOINT_URL"
aws_access_key_id = "$AWS_ACCESS_KEY_ID"
aws_secret_access_key = "$AWS_SECRET_ACCESS_KEY"
aws_region = "$AWS_REGION"
aws_allow_http = "true"
EOT
)

down() { # DIR
  "$HERE/kafka.sh" down "$1/kafka"
  "$HERE/objectstore.sh" down "$1/objectstore"
  rm -f "$1/env"
}

main() {
  local verb=${1:-help} dir
  shift || true
  case $verb in
    up | down | topic) dir=$(realpath -m "${1:?services.sh $verb needs DIR}") && shift ;;
    *) usage; return ;;
  esac
  case $verb in
    up) up "$dir" "$@" ;;
    down) down "$dir" ;;
    topic) "$HERE/kafka.sh" topic "$dir/kafka" "$@" ;;
  esac
}

main "$@"
