#!/usr/bin/env bash
# Looks for input that breaks the readers: run.sh SECONDS [TARGET]... runs each target for so long, from a corpus that grows
# from run to run. Ends with an error when one was found, and says where it lies.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
seconds=${1:?how many seconds for each target?}
shift
all=(message job_file media_reference picture)
targets=("$@")
((${#targets[@]})) || targets=("${all[@]}")

shared=${CARGO_TARGET_DIR:-$HOME/.cache/assay-target}
export CARGO_TARGET_DIR=$shared/fuzz
if [[ ! -d $CARGO_TARGET_DIR && -d $shared/debug/deps ]]; then
  # Dependencies are those of the ordinary build. The readers of pictures are built anew, for they are watched.
  mkdir -p "$CARGO_TARGET_DIR"
  cp -al "$shared/debug" "$CARGO_TARGET_DIR/debug"
  rm -f "$CARGO_TARGET_DIR/debug/.cargo-lock"
  cargo clean --quiet --locked --manifest-path "$here/Cargo.toml" \
    -p assay -p image -p png -p zune-jpeg -p image-webp -p gif -p tiff -p fdeflate
fi
RUSTC_WRAPPER=$here/rustc.sh cargo build --locked --manifest-path "$here/Cargo.toml"

corpus=$CARGO_TARGET_DIR/corpus
for target in "${all[@]}"; do mkdir -p "$corpus/$target" "$CARGO_TARGET_DIR/found/$target"; done
cp "$root"/jobs/*.toml "$corpus/job_file/"
cp "$root"/tests/data/*.png "$corpus/picture/"
printf '%s' '{"id":"a-1","title":"Mug","description":"Red","attributes":{"size":"0.3 l"},"candidate_categories":["Home > Mugs"],"media":[{"url":"s3://shop/pictures/a.jpg","role":"main"}],"locale":"en-GB","price":{"amount":9.5,"currency":"EUR"},"event_time":"2026-01-02T03:04:05Z"}' > "$corpus/message/product.json"
printf '%s' '{"id":"b-1","headline":"Mugs","body":"Red. Now.","call_to_action":"Buy","landing_page":"<h1>Mugs</h1>","media":[{"url":"https://cdn.example.com/media/b.png"}],"event_time":"2026-01-02T03:04:05+02:00"}' > "$corpus/message/ad.json"
number=0
for reference in s3://shop/pictures/a.jpg https://cdn.example.com/media/a%2e.png file:///data/media/../a.png gs://a/b az://c/d; do
  printf '%s' "$reference" > "$corpus/media_reference/$((number++))"
done

for target in "${targets[@]}"; do
  echo "fuzz: $target for $seconds s" >&2
  "$CARGO_TARGET_DIR/debug/$target" "$corpus/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
    -print_final_stats=1 -artifact_prefix="$CARGO_TARGET_DIR/found/$target/" 2>&1 |
    grep -v '^#[0-9]*[[:space:]]*\(NEW\|REDUCE\|pulse\)' || { echo "fuzz: $target failed; its input lies in $CARGO_TARGET_DIR/found/$target" >&2; exit 1; }
done
