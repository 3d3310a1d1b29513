#!/usr/bin/env bash
# Checks the chart, the alert rules and the script that fetches models, without a cluster and without a network.
#
#   lint.sh            with the tools that are in the cache; says what it left out
#   lint.sh --fetch    builds what is missing first (Go, the module proxy, some minutes)
#
# In order: helm lint, rendering and strict schemas for the default values and every file of helm/ci, for the oldest
# Kubernetes that the chart admits as well; helm-unittest; promtool's checks and tests of the rules; the dashboard is JSON;
# every value has a comment; download.sh against a server on loopback.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=tests/kube/tools.sh

say() { printf 'chart: %s\n' "$*"; }
passed=0
# step NAME COMMAND...: its output is shown when it fails.
step() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    passed=$((passed + 1))
  else
    printf '%s\n' "$output" >&2
    say "FAILED: $name" >&2
    exit 1
  fi
}

# Needs nothing but a shell and Python or jq.
step "every value has a comment" tests/helm/comments.sh
step "models are fetched, once, and checked" tests/helm/download_test.sh

if [[ "${1:-}" == --fetch ]]; then
  "$tools" fetch lint
elif ! missing=$("$tools" have lint 2>&1); then
  say "$passed checks passed. LEFT OUT: helm lint, schemas, unit tests, rules, because of tools ${missing#*: }"
  say "build them once with: tests/helm/lint.sh --fetch"
  exit 0
fi
eval "$("$tools" env)"

manifests() { # VALUES [KUBE-VERSION]
  helm template assay helm --namespace assay --values "$1" ${2:+--kube-version "$2"}
}
valid() { manifests "$@" | kubeconform -strict -summary -schema-location "$ASSAY_KUBE_SCHEMAS" -; }
# The same document, when it went through the chart, is what promtool reads.
rendered_rules() {
  helm template assay helm --values helm/ci/gpu-values.yaml --show-only templates/observe.yaml |
    kubetool spec PrometheusRule | promtool check rules --lint=all --lint-fatal
}
# Every query of the dashboard as a rule, which promtool parses.
dashboard_queries() {
  python3 - helm/dashboards/assay.json <<'PYTHON' | promtool check rules
import json, sys
print("groups: [{name: dashboard, rules: [")
names = {"$__rate_interval": "1m", "$namespace": ".*", "$job": ".*", "$price": "2"}
count = 0
for panel in json.load(open(sys.argv[1]))["panels"]:
    for target in panel.get("targets", []):
        query = target["expr"]
        for name, value in names.items():
            query = query.replace(name, value)
        count += 1
        print(json.dumps({"record": f"query:{count}", "expr": query}) + ",")
print("]}]")
PYTHON
}
rendered_dashboard() {
  helm template assay helm --show-only templates/observe.yaml | sed -n 's/^    //p' | sed -n '/^{/,/^}/p' | cmp - helm/dashboards/assay.json
}

for values in /dev/null helm/ci/*-values.yaml; do
  name=$(basename "$values" -values.yaml)
  step "helm lint --strict, $name" helm lint --strict helm --values "$values"
  step "helm template and strict schemas, $name" valid "$values"
  step "helm template for Kubernetes 1.28, $name" manifests "$values" 1.28.0
done
step "helm-unittest" helm-unittest --strict helm
step "promtool check rules" promtool check rules --lint=all --lint-fatal helm/rules/assay.yaml
step "promtool test rules" promtool test rules helm/rules/assay_test.yaml
step "rules as the chart renders them" rendered_rules
step "the dashboard's queries" dashboard_queries
step "the dashboard as the chart renders it" rendered_dashboard
# What a worker has answered, see tests/image/check.sh.
if [[ -s "${ASSAY_EXPOSITION:-}" ]]; then
  step "promtool check metrics" bash -c 'promtool check metrics <"$ASSAY_EXPOSITION"'
else
  say "LEFT OUT: promtool check metrics, because no worker could be asked for them"
fi
say "$passed checks passed"
