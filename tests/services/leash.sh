#!/usr/bin/env bash
# leash.sh PID: waits until the process of the tests is gone, however it ended, then kills the workers that it started.
# A worker is known by ASSAY_TEST_OWNER in its environment.
set -uo pipefail
owner=${1:?the PID of the tests}
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
since=$(born "$owner")
while [[ -n $since && $(born "$owner") == "$since" ]]; do sleep 1; done
for environment in /proc/[0-9]*/environ; do
  if grep -qzx "ASSAY_TEST_OWNER=$owner" "$environment" 2>/dev/null; then
    process=${environment#/proc/}
    kill -9 "${process%/environ}" 2>/dev/null
  fi
done
