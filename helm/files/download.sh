#!/bin/sh
# Fetches model files from a hub into a folder: sh download.sh LIST FOLDER. Each line of LIST says
# "repository revision folder file sha256"; "-" for an unchecked sum. The shards that a *.index.json names are fetched as
# well. A file is complete or not there; one that is there for this revision is left alone. HUB_ENDPOINT, HUB_TOKEN.
set -eu

list=$1 root=$2

fetch() { # repository revision folder file sum
  target="$root/$3/$4"
  mark="$target.revision"
  if [ -f "$target" ] && [ "$(cat "$mark" 2>/dev/null)" = "$1@$2" ]; then
    echo "$3/$4: there already"
    return
  fi
  mkdir -p "$(dirname "$target")"
  # Another pod may fetch the same: each has a part of its own, and the last rename wins with equal content.
  part="$target.part.${HOSTNAME:-0}.$$"
  if [ -n "${HUB_TOKEN:-}" ]; then
    # Not on the command line, which any process can read.
    printf 'header = "Authorization: Bearer %s"\n' "$HUB_TOKEN" >"/tmp/hub.$$"
  else
    : >"/tmp/hub.$$"
  fi
  curl --config "/tmp/hub.$$" --fail --silent --show-error --location --retry 5 --retry-all-errors \
    --connect-timeout 20 --speed-limit 1024 --speed-time 60 \
    --output "$part" "${HUB_ENDPOINT:-https://huggingface.co}/$1/resolve/$2/$4"
  rm -f "/tmp/hub.$$"
  if [ "$5" != - ] && [ "$(sha256sum "$part" | cut -d' ' -f1)" != "$5" ]; then
    rm -f "$part"
    echo "$3/$4: is not the file with the sha256 $5" >&2
    exit 1
  fi
  mv "$part" "$target"
  printf %s "$1@$2" >"$mark"
  echo "$3/$4: fetched"
}

while read -r repository revision folder file sum; do
  [ -n "$repository" ] || continue
  fetch "$repository" "$revision" "$folder" "$file" "$sum"
  case $file in
    *.index.json)
      for shard in $(grep -o '"[^"/]*\.safetensors"' "$root/$folder/$file" | tr -d '"' | sort -u); do
        fetch "$repository" "$revision" "$folder" "$shard" -
      done
      ;;
  esac
done <"$list"
