#!/usr/bin/env bash
# A real Kubernetes control plane with KEDA on loopback, without containers, for tests/kube/run.sh.
#
#   cluster.sh up DIR [--no-keda] [--owner PID]   start it, write DIR/kubeconfig and DIR/env; it ends when PID does
#   cluster.sh status DIR                         what runs
#   cluster.sh down DIR                           stop it; the logs stay in DIR/log
#
# Real: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, the KEDA operator, its metrics adapter and webhooks.
# The nodes are kwok's: pods are scheduled and become Running, nothing is executed. Needs openssl, curl, flock, setsid.
# ASSAY_KUBE_NODES (2) and ASSAY_KUBE_GPUS (8) of each node.
set -euo pipefail
self="$(realpath -- "${BASH_SOURCE[0]}")"
. "${self%/*}/tools.sh"
dir="" api="" keda_metrics=""

# ------------------------------------------------------------------------------------------------------ processes

# When a process began, in ticks since boot: with the pid, its name for ever.
birth() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  stat="${stat##*) }"
  [[ "${stat%% *}" != Z ]] || return 1
  cut -d' ' -f20 <<<"$stat"
}

alive() {
  local pid born
  { read -r pid born <"$1"; } 2>/dev/null || return 1
  [[ -n "$born" && "$(birth "$pid" || true)" == "$born" ]]
}

launch() {
  local name="$1"
  shift
  (cd "$dir" && exec setsid "$@" >"$dir/log/$name.log" 2>&1 </dev/null 9>&-) &
  printf '%s %s\n' "$!" "$(birth "$!")" >"$dir/run/$name.pid"
}

# await NAME SECONDS COMMAND...: try until the command succeeds; give up when the time is over or process NAME has ended.
await() {
  local name="$1" until=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    alive "$dir/run/$name.pid" || { tail -n 15 "$dir/log/$name.log" >&2; die "$name ended; see $dir/log/$name.log"; }
    ((SECONDS < until)) || { tail -n 15 "$dir/log/$name.log" >&2; die "$name: not ready in time: $*"; }
    sleep 0.2
  done
}

halt() {
  local name file pid _ until
  for name in guard keda-webhooks keda-adapter keda-operator kwok kube-scheduler kube-controller-manager kube-apiserver etcd; do
    file="$dir/run/$name.pid"
    if alive "$file"; then
      read -r pid _ <"$file"
      [[ "$pid" != "$$" ]] || continue
      kill -TERM "$pid" 2>/dev/null || true
      until=$((SECONDS + 10))
      while alive "$file"; do
        ((SECONDS < until)) || { kill -KILL "$pid" 2>/dev/null || true; }
        sleep 0.1
      done
    fi
    rm -f "$file"
  done
}

# Does this address answer?
# shellcheck disable=SC2317  # called by await
answers() { curl -fsk --noproxy '*' --max-time 5 "$1"; }

next_port=0
port() {
  ((next_port)) || next_port=$((20000 + RANDOM % 9000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$next_port") 2>/dev/null; do next_port=$((next_port + 1)); done
  printf -v "$1" %s "$next_port"
  next_port=$((next_port + 1))
}

# ------------------------------------------------------------------------------------------------------------- up

authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "/CN=$1" \
    -keyout "$dir/pki/$1.key" -out "$dir/pki/$1.crt" 2>/dev/null
}

# certificate AUTHORITY NAME SUBJECT [ALTERNATIVE NAMES]
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$3" -keyout "$dir/pki/$2.key" 2>/dev/null |
    openssl x509 -req -days 365 -CA "$dir/pki/$1.crt" -CAkey "$dir/pki/$1.key" -CAcreateserial -out "$dir/pki/$2.crt" \
      -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${4:+subjectAltName=$4}") 2>/dev/null
}

# kubeconfig FILE CERTIFICATE
kubeconfig() {
  local set=("$bin/kubectl" --kubeconfig "$1" config)
  "${set[@]}" set-cluster assay --server="https://127.0.0.1:$api" --certificate-authority="$dir/pki/ca.crt" --embed-certs=true
  "${set[@]}" set-credentials me --client-certificate="$dir/pki/$2.crt" --client-key="$dir/pki/$2.key" --embed-certs=true
  "${set[@]}" set-context assay --cluster=assay --user=me
  "${set[@]}" use-context assay
} >/dev/null

kubectl() { "$bin/kubectl" --kubeconfig "$dir/kubeconfig" "$@"; }

control_plane() {
  local store peer manager scheduler kubelet i
  port store; port peer; port api; port manager; port scheduler; port kubelet

  authority ca
  authority front-ca
  certificate ca apiserver /CN=kube-apiserver "IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc,IP:10.96.0.1"
  certificate ca admin /O=system:masters/CN=admin
  certificate ca manager /CN=system:kube-controller-manager
  certificate ca scheduler /CN=system:kube-scheduler
  certificate front-ca front /CN=front-proxy
  openssl ecparam -genkey -name prime256v1 -noout -out "$dir/pki/accounts.key" 2>/dev/null
  kubeconfig "$dir/kubeconfig" admin
  kubeconfig "$dir/run/manager.kubeconfig" manager
  kubeconfig "$dir/run/scheduler.kubeconfig" scheduler

  launch etcd "$bin/etcd" --name=assay --data-dir="$dir/etcd" --unsafe-no-fsync \
    --listen-client-urls="http://127.0.0.1:$store" --advertise-client-urls="http://127.0.0.1:$store" \
    --listen-peer-urls="http://127.0.0.1:$peer" --initial-advertise-peer-urls="http://127.0.0.1:$peer" \
    --initial-cluster="assay=http://127.0.0.1:$peer"
  await etcd 30 answers "http://127.0.0.1:$store/health"

  launch kube-apiserver "$bin/kube-apiserver" --etcd-servers="http://127.0.0.1:$store" \
    --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$api" --endpoint-reconciler-type=none \
    --tls-cert-file="$dir/pki/apiserver.crt" --tls-private-key-file="$dir/pki/apiserver.key" --client-ca-file="$dir/pki/ca.crt" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$dir/pki/accounts.key" \
    --service-account-key-file="$dir/pki/accounts.key" --service-cluster-ip-range=10.96.0.0/16 \
    --authorization-mode=Node,RBAC --allow-privileged=true \
    --requestheader-client-ca-file="$dir/pki/front-ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$dir/pki/front.crt" --proxy-client-key-file="$dir/pki/front.key"
  await kube-apiserver 90 kubectl get --raw /readyz

  # The autoscaler's own waits are cut from 15 s and 5 min: a chart that sets its own stabilisation window overrides this.
  launch kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$dir/run/manager.kubeconfig" \
    --authentication-kubeconfig="$dir/run/manager.kubeconfig" --authorization-kubeconfig="$dir/run/manager.kubeconfig" \
    --bind-address=127.0.0.1 --secure-port="$manager" --leader-elect=false --use-service-account-credentials=true \
    --service-account-private-key-file="$dir/pki/accounts.key" --root-ca-file="$dir/pki/ca.crt" \
    --horizontal-pod-autoscaler-sync-period=2s --horizontal-pod-autoscaler-downscale-stabilization=5s
  launch kube-scheduler "$bin/kube-scheduler" --kubeconfig="$dir/run/scheduler.kubeconfig" \
    --authentication-kubeconfig="$dir/run/scheduler.kubeconfig" --authorization-kubeconfig="$dir/run/scheduler.kubeconfig" \
    --bind-address=127.0.0.1 --secure-port="$scheduler" --leader-elect=false
  await kube-controller-manager 60 answers "https://127.0.0.1:$manager/healthz"
  await kube-scheduler 60 answers "https://127.0.0.1:$scheduler/healthz"

  mkdir -p "$dir/kwok"
  launch kwok env KWOK_WORKDIR="$dir/kwok" "$bin/kwok" --kubeconfig="$dir/kubeconfig" --config="$home/stages.yaml" \
    --manage-all-nodes=true --node-lease-duration-seconds=40 --node-ip=127.0.0.1 --server-address="127.0.0.1:$kubelet"
  for ((i = 0; i < ${ASSAY_KUBE_NODES:-2}; i++)); do
    cat <<END
---
apiVersion: v1
kind: Node
metadata:
  name: assay-$i
  annotations: {kwok.x-k8s.io/node: fake}
  labels:
    kubernetes.io/arch: amd64
    kubernetes.io/hostname: assay-$i
    kubernetes.io/os: linux
    node-role.kubernetes.io/worker: ""
    nvidia.com/gpu.present: "true"
status:
  allocatable: &size {cpu: "64", memory: 512Gi, ephemeral-storage: 1Ti, pods: "110", nvidia.com/gpu: "${ASSAY_KUBE_GPUS:-8}"}
  capacity: *size
END
  done | kubectl create -f - >/dev/null
  await kwok 60 kubectl wait --for=condition=Ready nodes --all --timeout=1s
  kubectl apply --server-side -f "$home/crds/monitoring" >/dev/null
  await kube-controller-manager 60 kubectl get serviceaccount default
}

autoscaler() {
  local grpc adapter adapter_metrics probe webhooks webhooks_probe bundle certs="$dir/pki/keda"
  port grpc; port adapter; port adapter_metrics; port probe; port keda_metrics; port webhooks; port webhooks_probe
  bundle="$(base64 -w0 "$dir/pki/ca.crt")"
  certificate ca keda /CN=keda-operator "IP:127.0.0.1,DNS:localhost,DNS:keda-operator.keda.svc,DNS:keda-metrics-apiserver.keda.svc"
  mkdir -p "$certs"
  cp "$dir/pki/ca.crt" "$certs/ca.crt"
  cp "$dir/pki/keda.crt" "$certs/tls.crt"
  cp "$dir/pki/keda.key" "$certs/tls.key"

  kubectl create namespace keda >/dev/null
  kubectl apply --server-side -f "$home/crds/keda" >/dev/null
  await kube-apiserver 30 kubectl wait --for=condition=Established --timeout=1s -f "$home/crds/keda"
  kubectl apply -f "$home/keda/rbac" >/dev/null

  launch keda-operator env KUBECONFIG="$dir/kubeconfig" POD_NAMESPACE=keda KEDA_CLUSTER_OBJECT_NAMESPACE=keda WATCH_NAMESPACE= \
    "$bin/keda-operator" --cert-dir="$certs" --ca-dir="$certs" --metrics-bind-address="127.0.0.1:$keda_metrics" \
    --health-probe-bind-address="127.0.0.1:$probe" --metrics-service-bind-address="127.0.0.1:$grpc" --zap-log-level=info
  await keda-operator 60 answers "http://127.0.0.1:$probe/readyz"

  launch keda-adapter env KUBECONFIG="$dir/kubeconfig" POD_NAMESPACE=keda WATCH_NAMESPACE= \
    "$bin/keda-adapter" --bind-address=127.0.0.1 --secure-port="$adapter" --port="$adapter_metrics" \
    --lister-kubeconfig="$dir/kubeconfig" --authentication-kubeconfig="$dir/kubeconfig" --authorization-kubeconfig="$dir/kubeconfig" \
    --client-ca-file="$certs/ca.crt" --tls-cert-file="$certs/tls.crt" --tls-private-key-file="$certs/tls.key" --cert-dir="$certs" \
    --metrics-service-address="127.0.0.1:$grpc"
  # The API server reaches the adapter through a service that is only a name: endpoints may not lie on loopback.
  kubectl apply -f - >/dev/null <<END
apiVersion: v1
kind: Service
metadata: {name: keda-metrics-apiserver, namespace: keda}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  service: {name: keda-metrics-apiserver, namespace: keda, port: $adapter}
  caBundle: $bundle
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
END
  await keda-adapter 60 kubectl wait --for=condition=Available apiservice/v1beta1.external.metrics.k8s.io --timeout=1s

  # KEDA ships its webhooks with failurePolicy Ignore; a test wants to hear of it when they are not asked.
  launch keda-webhooks env KUBECONFIG="$dir/kubeconfig" POD_NAMESPACE=keda "$bin/keda-webhooks" --port="$webhooks" \
    --cert-dir="$certs" --metrics-bind-address=0 --health-probe-bind-address="127.0.0.1:$webhooks_probe"
  await keda-webhooks 60 answers "http://127.0.0.1:$webhooks_probe/readyz"
  await keda-webhooks 60 openssl s_client -connect "127.0.0.1:$webhooks"
  sed -e '/^    service:$/d; /^      name: keda-admission-webhooks$/d; /^      namespace: keda$/d' \
    -e "s|^      path: \(/.*\)\$|    url: https://127.0.0.1:$webhooks\1\n    caBundle: $bundle|" \
    -e 's/failurePolicy: Ignore/failurePolicy: Fail/' "$home/keda/webhooks.yaml" | kubectl apply -f - >/dev/null
}

# guard PID BIRTH: end everything when that process has ended.
guard() {
  while [[ "$(birth "$1" || true)" == "$2" ]]; do sleep 1; done
  say "process $1 has ended, so does the cluster"
  halt
}

up() {
  local with_keda="$1" owner="$2" born="" file
  [[ -z "$owner" ]] || born="$(birth "$owner")" || die "no process $owner"
  [[ -f "$dir/.kube" || ! -e "$dir" || -z "$(ls -A "$dir")" ]] || die "$dir is not empty and not of an earlier up"
  mkdir -p "$dir"
  : >"$dir/.kube"
  for file in "$dir"/run/*.pid; do
    ! alive "$file" || die "already up (or half up) in $dir: cluster.sh down it first"
  done
  for file in openssl curl flock setsid; do command -v "$file" >/dev/null || die "needs $file"; done
  have cluster 2>/dev/null || fetch cluster
  [[ "$with_keda" == no ]] || have keda 2>/dev/null || fetch keda
  rm -rf "${dir:?}"/{run,log,pki,etcd,kwok,kubeconfig,env}
  mkdir -p "$dir"/{run,log,pki}
  chmod 700 "$dir/pki" "$dir/run"
  trap 'say "up failed; the logs are in $dir/log"; halt' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  control_plane
  [[ "$with_keda" == no ]] || autoscaler
  {
    printf 'export KUBECONFIG=%q\n' "$dir/kubeconfig"
    printf 'export ASSAY_KUBE_API=%q\n' "https://127.0.0.1:$api"
    [[ "$with_keda" == no ]] || printf 'export ASSAY_KEDA_METRICS=%q\n' "http://127.0.0.1:$keda_metrics/metrics"
    tools
  } >"$dir/env"
  [[ -z "$owner" ]] || launch guard bash "$self" guard "$dir" "$owner" "$born"
  trap - EXIT INT TERM
  say "up in $SECONDS s: . $dir/env"
}

status() {
  local file name code=1
  for file in "$dir"/run/*.pid; do
    [[ -e "$file" ]] || continue
    name="$(basename "$file" .pid)"
    if alive "$file"; then printf '%s up\n' "$name"; code=0; else printf '%s ended\n' "$name"; fi
  done
  return "$code"
}

main() {
  local verb="${1:-}" with_keda=yes owner=""
  [[ $# -eq 0 ]] || shift
  case "$verb" in
    up | down | status | guard) ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$self" >&2; exit 2 ;;
  esac
  [[ -n "${1:-}" ]] || die "$verb where? give a folder"
  dir="$(realpath -m -- "$1")"
  shift
  [[ "$verb" == up || -f "$dir/.kube" ]] || die "$dir is not of an earlier up"
  case "$verb" in
    up)
      while (($#)); do
        case "$1" in
          --no-keda) with_keda=no ;;
          --owner) owner="${2:?a process id}"; shift ;;
          *) die "up: what is $1?" ;;
        esac
        shift
      done
      up "$with_keda" "$owner"
      ;;
    status) status ;;
    guard) guard "$@" ;;
    down)
      halt
      rm -rf "${dir:?}"/{etcd,kwok,run}
      ;;
  esac
}

main "$@"; exit
