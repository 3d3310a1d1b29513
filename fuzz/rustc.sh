#!/usr/bin/env bash
# The compiler, called by cargo: our crate, the targets and the readers of pictures learn to tell libFuzzer where they have been.
# The flags are those of cargo-fuzz without a sanitizer, which a stable compiler takes as well.
set -euo pipefail
compiler=$1
shift
name= wanted=
for argument; do
  [[ $wanted ]] && name=$argument
  wanted=
  [[ $argument == --crate-name ]] && wanted=yes
done
case $name in
  assay | message | job_file | media_reference | picture | image | png | zune_jpeg | image_webp | gif | tiff | fdeflate)
    exec "$compiler" "$@" --cfg fuzzing -Cpasses=sancov-module \
      -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
      -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
  *) exec "$compiler" "$@" ;;
esac
