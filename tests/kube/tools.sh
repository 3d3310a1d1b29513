#!/usr/bin/env bash
# The tools that check the chart, compiled from published Go modules into the cache.
#
#   tools.sh fetch [lint|cluster|keda|all]     build what is missing (default: lint)
#   tools.sh have [lint|cluster|keda]          is all of it there? says what is missing
#   tools.sh env                               the tools' PATH and the schemas, for eval
#
# lint: helm, helm-unittest, kubeconform with schemas, promtool. cluster: etcd, kube-apiserver, kube-controller-manager,
# kube-scheduler, kubectl, kwok. keda: operator, metrics adapter, webhooks. Everything lies under
# ${XDG_CACHE_HOME:-$HOME/.cache}/assay-services; with that folder kept, neither Go nor a network is needed.
# ASSAY_BUILD_JOBS is how many packages are compiled at once (2).
set -euo pipefail

kube=1.36.4
staging=0.36.4
etcd=3.7.1
kwok=0.8.0
keda=2.21.0
helm=3.21.4
unittest=1.1.2
kubeconform=0.8.0
prometheus=0.314.0
promoperator=0.85.0

home="${XDG_CACHE_HOME:-$HOME/.cache}/assay-services/kube-$kube"
bin="$home/bin"
here="$(dirname "$(realpath -- "${BASH_SOURCE[0]}")")"

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

goenv() {
  env -u GOFLAGS GOWORK=off CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath -buildvcs=false -p=${ASSAY_BUILD_JOBS:-2}" nice -n 10 "$@"
}

# The folder of a module's source, or (with GoMod) its go.mod, in Go's module cache.
module() {
  (cd / && goenv go mod download -json "$1") | sed -n "s/^.*\"${2:-Dir}\": \"\\(.*\\)\".*$/\\1/p"
}

# One scratch module for all binaries, so that they share their compiled dependencies. k8s.io/kubernetes asks for its
# libraries at v0.0.0; they are published at v$staging.
prepare() {
  local gomod library
  [[ -f "$home/src/go.sum" ]] && return
  command -v go >/dev/null || die "needs go 1.26 or newer"
  mkdir -p "$home/src.new"
  cat >"$home/src.new/go.mod" <<END
module assay-services

go 1.26.0

require (
	github.com/helm-unittest/helm-unittest v$unittest
	github.com/kedacore/keda/v2 v$keda
	github.com/prometheus/prometheus v$prometheus
	github.com/yannh/kubeconform v$kubeconform
	go.etcd.io/etcd/server/v3 v$etcd
	helm.sh/helm/v3 v$helm
	k8s.io/kubernetes v$kube
	sigs.k8s.io/kwok v$kwok
)

replace (
	github.com/nexus-rpc/nexus-proto-annotations v0.1.0 => github.com/nexus-rpc/nexus-proto-annotations v0.1.1-0.20260629224316-835bd8d49cb4
	github.com/vmware-labs/yaml-jsonpath v0.3.2 => github.com/helm-unittest/yaml-jsonpath v0.4.0
)
END
  gomod="$(module "k8s.io/kubernetes@v$kube" GoMod)"
  while read -r library; do
    (cd "$home/src.new" && goenv go mod edit -replace "$library=$library@v$staging")
  done < <(sed -n 's/^\t\(k8s\.io\/[a-z-]*\) v0\.0\.0$/\1/p' "$gomod")
  mkdir -p "$home/src.new/kubetool"
  cp "$here/kubetool.go" "$home/src.new/kubetool/main.go"
  # Resolve every import once, so that go.sum is whole before the first build.
  (cd "$home/src.new" && goenv go list -deps -f '{{""}}' ./kubetool \
    go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl} \
    sigs.k8s.io/kwok/cmd/kwok github.com/kedacore/keda/v2/cmd/{operator,adapter,webhooks} helm.sh/helm/v3/cmd/helm \
    github.com/helm-unittest/helm-unittest/cmd/helm-unittest github.com/yannh/kubeconform/cmd/kubeconform \
    github.com/prometheus/prometheus/cmd/promtool >/dev/null)
  rm -rf "$home/src"
  mv "$home/src.new" "$home/src"
}

build() {
  local name="$1" package="$2" flags start=$SECONDS
  [[ -x "$bin/$name" ]] && return
  prepare
  flags="-s -w -X k8s.io/component-base/version.gitVersion=v$kube -X k8s.io/component-base/version.gitMajor=${kube%%.*}"
  flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$kube") -X k8s.io/component-base/version.gitTreeState=clean"
  flags+=" -X k8s.io/client-go/pkg/version.gitVersion=v$kube -X github.com/kedacore/keda/v2/version.Version=$keda"
  flags+=" -X helm.sh/helm/v3/internal/version.version=v$helm"
  flags+=" -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=${kube%%.*} -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$(cut -d. -f2 <<<"$kube")"
  flags+=" -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=${kube%%.*} -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=$(cut -d. -f2 <<<"$kube")"
  mkdir -p "$bin"
  say "building $name"
  (cd "$home/src" && goenv go build -ldflags "$flags" -o "$bin/.$name" "$package")
  mv "$bin/.$name" "$bin/$name"
  say "built $name in $((SECONDS - start)) s"
}

fetch_lint() {
  build helm helm.sh/helm/v3/cmd/helm
  build kubeconform github.com/yannh/kubeconform/cmd/kubeconform
  build helm-unittest github.com/helm-unittest/helm-unittest/cmd/helm-unittest
  build promtool github.com/prometheus/prometheus/cmd/promtool
  build kubetool ./kubetool
  fetch_schemas
}

# Custom resource definitions as files, and a strict JSON schema for every kind of Kubernetes and of these definitions.
fetch_schemas() {
  local from part
  [[ -d "$home/schemas" ]] && return
  build kubetool ./kubetool
  rm -rf "$home/crds"
  mkdir -p "$home/crds/keda" "$home/crds/monitoring"
  from="$(module "github.com/kedacore/keda/v2@v$keda")"
  cp "$from"/config/crd/bases/*.yaml "$home/crds/keda/"
  from="$(module "github.com/prometheus-operator/prometheus-operator@v$promoperator")"
  for part in podmonitors servicemonitors prometheusrules; do
    cp "$from/example/prometheus-operator-crd/monitoring.coreos.com_$part.yaml" "$home/crds/monitoring/"
  done
  chmod -R u+w "$home/crds"
  from="$(module "k8s.io/kubernetes@v$kube")"
  rm -rf "$home/schemas.new"
  "$bin/kubetool" schemas "$home/schemas.new/v$kube-standalone-strict" "$from/api/openapi-spec/swagger.json" "$home"/crds/*/*.yaml
  ln -s "v$kube-standalone-strict" "$home/schemas.new/master-standalone-strict"
  mv "$home/schemas.new" "$home/schemas"
}

fetch_cluster() {
  local from file
  build etcd go.etcd.io/etcd/server/v3
  build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
  build kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
  build kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
  build kubectl k8s.io/kubernetes/cmd/kubectl
  build kwok sigs.k8s.io/kwok/cmd/kwok
  build helm helm.sh/helm/v3/cmd/helm
  fetch_schemas
  if [[ ! -f "$home/stages.yaml" ]]; then
    from="$(module "sigs.k8s.io/kwok@v$kwok")/kustomize/stage"
    for file in "$from"/node/fast/node-*.yaml "$from"/node/heartbeat-with-lease/node-*.yaml "$from"/pod/fast/pod-*.yaml; do
      cat "$file"
      printf '\n---\n'
    done >"$home/.stages.yaml"
    mv "$home/.stages.yaml" "$home/stages.yaml"
  fi
}

fetch_keda() {
  local from
  build keda-operator github.com/kedacore/keda/v2/cmd/operator
  build keda-adapter github.com/kedacore/keda/v2/cmd/adapter
  build keda-webhooks github.com/kedacore/keda/v2/cmd/webhooks
  if [[ ! -d "$home/keda" ]]; then
    from="$(module "github.com/kedacore/keda/v2@v$keda")/config"
    rm -rf "$home/keda.new"
    mkdir -p "$home/keda.new/rbac"
    cp "$from"/metrics-server/role{,_binding}.yaml "$home/keda.new/rbac/"
    cp "$from/webhooks/validation_webhooks.yaml" "$home/keda.new/webhooks.yaml"
    chmod -R u+w "$home/keda.new"
    mv "$home/keda.new" "$home/keda"
  fi
}

fetch() {
  local want="${1:-lint}" pins
  mkdir -p "$home"
  exec 9>"$home/lock"
  flock 9
  # Another version of anything, and all is built anew.
  pins="$kube $staging $etcd $kwok $keda $helm $unittest $kubeconform $prometheus $promoperator"
  if [[ ! -f "$home/pins" || "$(<"$home/pins")" != "$pins" ]]; then
    rm -rf "${home:?}"/{bin,src,crds,schemas,keda,stages.yaml}
    printf '%s\n' "$pins" >"$home/pins"
  elif [[ -d "$home/src" ]] && ! cmp -s "$here/kubetool.go" "$home/src/kubetool/main.go"; then
    rm -rf "${home:?}"/{bin/kubetool,schemas}
    cp "$here/kubetool.go" "$home/src/kubetool/main.go"
  fi
  case "$want" in
    lint) fetch_lint ;;
    cluster) fetch_cluster ;;
    keda) fetch_keda ;;
    all) fetch_lint; fetch_cluster; fetch_keda ;;
    *) die "fetch what? lint, cluster, keda or all" ;;
  esac
  exec 9>&-
}

have() {
  local name missing="" names=(helm kubeconform helm-unittest promtool kubetool)
  case "${1:-lint}" in
    lint) ;;
    cluster) names=(helm etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kwok) ;;
    keda) names=(keda-operator keda-adapter keda-webhooks) ;;
    *) die "have what? lint, cluster or keda" ;;
  esac
  for name in "${names[@]}"; do [[ -x "$bin/$name" ]] || missing+=" $name"; done
  [[ -d "$home/schemas" ]] || missing+=" schemas"
  [[ "${1:-lint}" != cluster || -f "$home/stages.yaml" ]] || missing+=" stages"
  [[ "${1:-lint}" != keda || -d "$home/keda" ]] || missing+=" manifests"
  [[ -z "$missing" ]] || { say "not built yet:$missing"; return 1; }
}

tools() {
  printf 'export ASSAY_KUBE_SCHEMAS=%q\n' "$home/schemas"
  printf 'export PATH=%q:%s\n' "$bin" "\"\$PATH\""
}

# Also sourced, for the functions alone.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  verb="${1:-}"
  [[ $# -eq 0 ]] || shift
  case "$verb" in
    fetch) fetch "$@" ;;
    have) have "$@" ;;
    env) tools ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2 ;;
  esac
fi
