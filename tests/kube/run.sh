#!/usr/bin/env bash
# The chart on a real control plane with KEDA, scaled by the lag of real workers on a real Kafka broker.
#
#   run.sh [--keep] [--no-keda] [FOLDER]
#
# FOLDER: where cluster, broker, logs and timelines go (default: a new one, removed at the end)
#
# Needs what tests/kube/tools.sh builds (Go; half an hour once), Java for the broker (tests/services/kafka.sh) and the built
# binary. Takes two to four minutes. In order:
#
#   1. the API server and KEDA's webhooks take every variant of helm/ci (server-side dry run)
#   2. install: KEDA takes the deployment to 0
#   3. records come; the replicas rise to the number of partitions and no further. For each replica a real worker runs, with
#      the configuration that the chart has put into its ConfigMap; a replica that goes is a worker that gets SIGTERM
#   4. everything is worked off; the replicas fall to 0, and every record is in the tables once
#   5. upgrade with another configuration makes new pods; rollback brings the old ones back; uninstall leaves nothing
#   6. 2 to 4 with records that came in transactions: their markers are no lag
#   7. 2 to 4 with SCRAM over TLS, for the autoscaler by its TriggerAuthentication and for the workers by their secrets
#
# --no-keda: a scaling simulation. The script plays the autoscaler, by the ScaledObject that the chart has installed: lag /
# lagThreshold rounded up, between 0 and maxReplicaCount. All else is as above. For machines where KEDA is not built.
# *-timeline.csv has lag, replicas and workers for each second or two of it. No pod is executed: the nodes are kwok's.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD
keep=no keda=yes
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --keep) keep=yes ;;
    --no-keda) keda=no ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2 ;;
  esac
  shift
done
folder="$(realpath -m -- "${1:-$(mktemp -d)}")"
kafka="${ASSAY_KAFKA_SH:-$here/tests/services/kafka.sh}"
target="${CARGO_TARGET_DIR:-$HOME/.cache/assay-target}"
# shellcheck disable=SC2012  # our own file names
binary="${ASSAY_BINARY:-$(ls -t "$target"/{release,debug}/assay 2>/dev/null | head -n 1 || true)}"
records=${ASSAY_KUBE_RECORDS:-20000}
partitions=4
deployment=assay-product-embedding

say() { printf 'kube: %s\n' "$*"; }
die() { printf 'kube: FAILED: %s\n' "$*" >&2; exit 1; }
[[ -x "$kafka" ]] || die "no $kafka to start a broker with"
[[ -x "$binary" ]] || die "no binary of assay; cargo build first"

declare -A workers=()
# shellcheck disable=SC2317  # called by trap
clean() {
  local pid
  for pid in "${workers[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  [[ ! -d "$folder/cluster" ]] || tests/kube/cluster.sh down "$folder/cluster" || true
  [[ ! -d "$folder/kafka" ]] || "$kafka" down "$folder/kafka" >/dev/null || true
  [[ "$keep" == yes ]] || rm -rf "$folder"
}
trap clean EXIT
mkdir -p "$folder"
"$kafka" up "$folder/kafka" --secure --owner $$ >/dev/null
. "$folder/kafka/env"
options=()
[[ "$keda" == yes ]] || options=(--no-keda)
tests/kube/cluster.sh up "$folder/cluster" --owner $$ "${options[@]}"
. "$folder/cluster/env"
k() { kubectl --namespace assay "$@"; }

# await SECONDS WHAT COMMAND...
await() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || die "waited in vain: $what"
    sleep 0.5
  done
}

# ----------------------------------------------------------------------------------------------- 1. every variant
kubectl create namespace assay >/dev/null
if [[ "$keda" == no ]]; then
  kubectl apply --server-side -f "${ASSAY_KUBE_SCHEMAS%/*}/crds/keda" >/dev/null
  kubectl wait --for=condition=Established --timeout=60s -f "${ASSAY_KUBE_SCHEMAS%/*}/crds/keda" >/dev/null
fi
kubectl apply -f - >/dev/null <<YAML
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: batch}
value: 10
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
YAML
for values in helm/ci/*-values.yaml; do
  helm template assay helm --namespace assay --values "$values" >"$folder/manifests.yaml"
  k apply --dry-run=server -f "$folder/manifests.yaml" >/dev/null || die "the API server refuses $values"
done
say "1. every variant is admitted"

# ------------------------------------------------------------------------------------- what the rounds are made of
release() { helm "$1" assay helm --namespace assay --values "$folder/values.yaml" "${@:2}" >"$folder/helm.log" 2>&1 || die "helm $1: $(cat "$folder/helm.log")"; }
replicas() { k get deployment "$deployment" --output jsonpath='{.spec.replicas}'; }
has_replicas() { [[ "$(replicas)" == "$1" ]]; }
scaled() { k get scaledobject "$deployment" --output jsonpath="{.spec.$1}"; }
lag_of() { assay status --json 2>/dev/null | grep -o '"lag":[0-9]*' | head -n 1 | cut -d: -f2; }
assay() { "$binary" --config "$folder/config.toml" "$@"; }

# What KEDA and the autoscaler do together, without their delays.
play_autoscaler() {
  local threshold most wanted
  threshold="$(scaled 'triggers[0].metadata.lagThreshold')" most="$(scaled maxReplicaCount)"
  wanted=$((($1 + threshold - 1) / threshold))
  k scale deployment "$deployment" --replicas=$((wanted < most ? wanted : most)) >/dev/null
}

# A topic of its own for the round, the chart with one job, and its files where workers of this machine read them.
install() { # TOPIC BOOTSTRAP KAFKA-VALUES
  "$kafka" topic "$folder/kafka" "$1" "$partitions" >/dev/null
  cat >"$folder/values.yaml" <<YAML
config:
  source: {kafka: {bootstrap_servers: "$2"}}
  tables: {url: "file:///tables", commit: {interval: 1s}}
  models: {demo: {path: /models/demo}}
kafka: $3
modelCache: {kind: hostPath, hostPath: /var/lib/models}
worker:
  gpu: {count: 1}
jobs:
  product-embedding:
    scaling:
      enabled: true
      partitions: $partitions
      maxReplicas: 10
      assetsPerSecond: 100
      catchUpSeconds: 10
      pollingSeconds: 2
      cooldownSeconds: 8
      scaleDownStabilizationSeconds: 4
      scaleDownPodsPerMinute: 60
      scaleUpPodsPerMinute: 60
    definition: |
      name = "product-embedding"
      kind = "product"
      topics = ["$1"]
      [[embeddings]]
      column = "text_embedding"
      model = "demo"
      input = "text"
      template = "{title}"
YAML
  release install
  [[ "$keda" == yes ]] || play_autoscaler 0
  await 90 "no replica while there is nothing to do" has_replicas 0
  mkdir -p "$folder"/{jobs,logs}
  k get configmap assay-config --output jsonpath='{.data.config\.toml}' >"$folder/config.toml"
  k get configmap "$deployment" --output jsonpath='{.data.product-embedding\.toml}' >"$folder/jobs/product-embedding.toml"
  # What a pod would have mounted lies elsewhere here.
  export ASSAY__JOBS="$folder/jobs" ASSAY__TABLES__URL="file://$folder/tables-$1" ASSAY__MODELS__DEMO__PATH="$here/models/demo-clip"
}

follow() { # REPLICAS
  local number pid
  for ((number = 0; number < partitions * 3; number++)); do
    pid="${workers[$number]:-}"
    if ((number < $1)) && [[ -z "$pid" ]]; then
      ASSAY__SERVER__ADDRESS=127.0.0.1:0 "$binary" --config "$folder/config.toml" run --job product-embedding >"$folder/logs/worker-$number.log" 2>&1 &
      workers[$number]=$!
    elif ((number >= $1)) && [[ -n "$pid" ]]; then
      kill -TERM "$pid"
      wait "$pid" || die "worker $number ends with $? on SIGTERM: $(tail -n 3 "$folder/logs/worker-$number.log")"
      unset "workers[$number]"
    fi
  done
}

most=0 now=0 lag=0 began=0 timeline=""
look() {
  now="$(replicas)"
  follow "$now"
  lag="$(lag_of)"
  [[ "$keda" == yes ]] || play_autoscaler "$lag"
  echo "$((SECONDS - began)),$lag,$now,${#workers[@]}" >>"$timeline"
  ((now <= most)) || most=$now
}

# From the first record to all partitions' workers, and from the last row back to none.
rise_and_fall() { # TOPIC UNIQUE-BY
  local rows
  timeline="$folder/$1-timeline.csv" began=$SECONDS most=0
  echo 'second,lag,replicas,workers' >"$timeline"
  until ((most == partitions)); do
    look
    ((SECONDS - began < 120)) || die "the replicas rose to $most, not to $partitions: $(tail -n 3 "$timeline")"
  done
  say "   $records records, $partitions replicas after $((SECONDS - began)) s"
  until [[ "$lag" == 0 && "$now" == 0 && ${#workers[@]} == 0 ]]; do
    look
    ((now <= partitions)) || die "$now replicas for $partitions partitions"
    ((SECONDS - began < 600)) || die "not back to 0: $(tail -n 3 "$timeline")"
  done
  rows="$(assay query --format csv "SELECT count(*), count(DISTINCT $2) FROM results" | tail -n 1)"
  [[ "$rows" == "$records,$records" ]] || die "rows and different ones: $rows, of $records records"
  assay status >"$folder/status.txt" || die "assay status: $(cat "$folder/status.txt")"
  grep -q '^product-embedding: lag 0, ' "$folder/status.txt" || die "assay status says $(head -n 1 "$folder/status.txt")"
  say "   all worked off once and back to 0 replicas after $((SECONDS - began)) s; never more than $most"
}

left() { k get all,configmap,scaledobject,triggerauthentication,hpa,pdb,networkpolicy,serviceaccount --output name | grep -vE 'kube-root-ca|serviceaccount/default'; }
nothing_left() { [[ -z "$(left)" ]]; }
uninstall() {
  helm uninstall assay --namespace assay --wait >/dev/null
  await 30 "uninstall leaves nothing" nothing_left
}

seq "$records" | sed 's/.*/{"id":"a&","title":"mug &","event_time":"2026-01-01T00:00:00Z"}/' >"$folder/records.jsonl"

# --------------------------------------------------------------------------- 2 to 4. install, rise and fall
install products "$KAFKA_BOOTSTRAP" '{}'
say "2. installed, and scaled to 0"
say "3. and 4. records come and are worked off"
assay submit --topic products "$folder/records.jsonl" >/dev/null
rise_and_fall products asset_id

# --------------------------------------------------------------------------- 5. upgrade, rollback, uninstall
hash_of() { k get deployment "$deployment" --output jsonpath='{.spec.template.metadata.annotations.checksum/config}'; }
first="$(hash_of)"
release upgrade --set config.tables.commit.interval=2s
second="$(hash_of)"
[[ -n "$first" && "$first" != "$second" ]] || die "another configuration has not changed the pods"
has_replicas 0 || die "an upgrade has changed the number of replicas"
helm rollback assay 1 --namespace assay >/dev/null
[[ "$(hash_of)" == "$first" ]] || die "rollback has not brought the pods back"
uninstall
say "5. upgraded, rolled back, uninstalled"

# ----------------------------------------------------------------------------------------------- 6. transactions
say "6. records that came in transactions"
install transactions "$KAFKA_BOOTSTRAP" '{}'
"$kafka" transactions "$folder/kafka" transactions "$records" "$folder/records.jsonl" 2>"$folder/transactions.log"
rise_and_fall transactions "concat(partition, '/', \"offset\")"
uninstall

# --------------------------------------------------------------------------------------------- 7. SCRAM over TLS
say "7. SCRAM over TLS"
k create secret generic kafka-user --from-literal=username="$KAFKA_SASL_USERNAME" --from-literal=password="$KAFKA_SASL_PASSWORD" >/dev/null
k create secret generic kafka-authority --from-file=ca.crt="$KAFKA_SSL_CA_LOCATION" >/dev/null
install secured "$KAFKA_SASL_SSL_BOOTSTRAP" \
  "{sasl: {mechanism: $KAFKA_SASL_MECHANISM, secret: kafka-user}, tls: {enabled: true, secret: kafka-authority}}"
secret() { k get secret "$1" --output jsonpath="{.data.$2}" | base64 -d; }
secret kafka-authority 'ca\.crt' >"$folder/ca.crt"
ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_USERNAME="$(secret kafka-user username)"
ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD="$(secret kafka-user password)"
export ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_USERNAME ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD
export ASSAY__SOURCE__KAFKA__PROPERTIES__SSL_CA_LOCATION="$folder/ca.crt"
assay submit --topic secured "$folder/records.jsonl" >/dev/null
rise_and_fall secured asset_id
uninstall

[[ "$keep" == no ]] || say "see $folder"
say "7 passed, 0 failed"
