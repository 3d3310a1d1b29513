#!/usr/bin/env bash
# Every key of helm/values.yaml has a comment of its own, in the line above it.
set -euo pipefail
cd "$(dirname "$0")/../.."
awk '
  /^ *(- )?[A-Za-z_][A-Za-z0-9_]*:/ && previous !~ /^ *#/ { printf "helm/values.yaml:%d: has no comment: %s\n", FNR, $0; wrong = 1 }
  { previous = $0 }
  END { exit wrong }
' helm/values.yaml
