#!/usr/bin/env bash
# A picture of the dashboard: picture.sh OUT.png
#
# The queries of helm/dashboards/assay.json, asked by Prometheus' own engine of a made-up day, drawn like Grafana draws
# them. A server of Grafana is in no package registry. Needs Go (once) and Python's matplotlib.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:?where to? give a file name that ends in .png}"
python3 -c 'import matplotlib' 2>/dev/null || { echo "needs matplotlib: pip install matplotlib" >&2; exit 1; }
. tests/kube/tools.sh
prepare
if [[ ! -x "$bin/evaluate" || tests/helm/picture/evaluate.go -nt "$bin/evaluate" ]]; then
  mkdir -p "$home/src/evaluate"
  cp tests/helm/picture/evaluate.go "$home/src/evaluate/main.go"
  rm -f "$bin/evaluate"
  build evaluate ./evaluate
fi
answers="$(mktemp)"
trap 'rm -f "$answers"' EXIT
"$bin/evaluate" helm/dashboards/assay.json >"$answers"
python3 tests/helm/picture/draw.py "$answers" "$out"
