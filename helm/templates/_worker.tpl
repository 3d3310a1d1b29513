{{/* One job: its file, its settings, its pod. */}}

{{/* The job file as it is understood, as JSON; fails when name and key differ. Takes root, name and job. */}}
{{- define "assay.definition" -}}
{{- $spec := fromToml .job.definition -}}
{{- if $spec.Error -}}
{{- fail (printf "jobs.%s.definition: is not TOML: %s" .name $spec.Error) -}}
{{- end -}}
{{- if ne (toString $spec.name) .name -}}
{{- fail (printf "jobs.%s.definition: has name = %q; it must be the key %q" .name (toString $spec.name) .name) -}}
{{- end -}}
{{- if has .name (list "check" "config" "dashboard" "download" "kafka" "metrics" "models" "upkeep") -}}
{{- fail (printf "jobs.%s: is a name that the chart needs for itself; call the job something else" .name) -}}
{{- end -}}
{{- if not $spec.topics -}}
{{- fail (printf "jobs.%s.definition: lists no topics" .name) -}}
{{- end -}}
{{- dict "group" ($spec.group | default (printf "assay-%s" .name)) "topics" $spec.topics | toJson -}}
{{- end -}}

{{/* Rules between a job's values. Takes name and worker. */}}
{{- define "assay.validate.worker" -}}
{{- $scaling := .worker.scaling -}}
{{- if and $scaling.enabled (ne .worker.mode "deployment") -}}
{{- fail (printf "jobs.%s.scaling: is for mode deployment, not %s" .name .worker.mode) -}}
{{- end -}}
{{- if and $scaling.enabled (lt (int $scaling.partitions) 1) -}}
{{- fail (printf "jobs.%s.scaling.partitions: is 0; say how many partitions the job's widest topic has" .name) -}}
{{- end -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.partitions)) -}}
{{- fail (printf "jobs.%s.scaling.minReplicas: is %d, more than the %d partitions; the rest would idle" .name (int $scaling.minReplicas) (int $scaling.partitions)) -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "jobs.%s.scaling.minReplicas: is %d, more than maxReplicas, %d" .name (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}

{{/* Environment of every container that runs assay. Takes root, env, log and gpu. */}}
{{- define "assay.env" -}}
{{- $sasl := .root.Values.kafka.sasl -}}
- name: HOME
  value: /tmp
{{- if gt (int .gpu) 0 }}
- name: ASSAY__ENGINE__DEVICE
  value: cuda:0
{{- end }}
{{- if $sasl.mechanism }}
- name: ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $sasl.secret }}, key: {{ $sasl.usernameKey }}}}
- name: ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $sasl.secret }}, key: {{ $sasl.passwordKey }}}}
{{- end }}
{{- range $name, $from := .root.Values.secrets.env }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $from.name }}, key: {{ $from.key }}}}
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Takes root, more (volume mounts). */}}
{{- define "assay.mounts" -}}
- {name: config, mountPath: /etc/assay/config, readOnly: true}
- {name: jobs, mountPath: /etc/assay/jobs, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if and .root.Values.kafka.tls.enabled .root.Values.kafka.tls.secret }}
- {name: kafka-tls, mountPath: /etc/assay/kafka, readOnly: true}
{{- end }}
{{- if ne .root.Values.modelCache.kind "none" }}
- {name: models, mountPath: {{ .root.Values.modelCache.mountPath }}, readOnly: true}
{{- end }}
{{- range $index, $file := .root.Values.secrets.files }}
- {name: secret-{{ $index }}, mountPath: {{ $file.mountPath }}, readOnly: true}
{{- end }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes root, jobs (names whose files are mounted) and more (volumes). */}}
{{- define "assay.volumes" -}}
{{- $root := .root -}}
- name: config
  configMap: {name: {{ include "assay.fullname" $root }}-config}
- name: jobs
  projected:
    sources:
      {{- range .jobs }}
      - configMap: {name: {{ include "assay.jobname" (dict "root" $root "name" .) }}}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- if and $root.Values.kafka.tls.enabled $root.Values.kafka.tls.secret }}
- name: kafka-tls
  secret: {secretName: {{ $root.Values.kafka.tls.secret }}, defaultMode: 0440}
{{- end }}
{{- include "assay.modelvolume" $root }}
{{- range $index, $file := $root.Values.secrets.files }}
- name: secret-{{ $index }}
  secret: {secretName: {{ $file.name }}, defaultMode: 0440}
{{- end }}
{{- if $root.Values.modelCache.download.models }}
- name: download
  configMap: {name: {{ include "assay.fullname" $root }}-download}
{{- end }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "assay.modelvolume" -}}
{{- if eq .Values.modelCache.kind "claim" }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.modelCache.claim.existing | default (printf "%s-models" (include "assay.fullname" .)) }}}
{{- else if eq .Values.modelCache.kind "hostPath" }}
- name: models
  hostPath: {path: {{ .Values.modelCache.hostPath }}, type: Directory}
{{- end }}
{{- end -}}

{{- define "assay.podsecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "assay.containersecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Fetches models before the worker starts. Takes the root context. */}}
{{- define "assay.download" -}}
{{- $download := .Values.modelCache.download -}}
- name: models
  image: {{ $download.image }}
  command: [sh, /download/download.sh, /download/models.txt, {{ .Values.modelCache.mountPath }}]
  env:
    - {name: HUB_ENDPOINT, value: {{ $download.endpoint | quote }}}
    {{- if $download.token.secret }}
    - name: HUB_TOKEN
      valueFrom: {secretKeyRef: {name: {{ $download.token.secret }}, key: {{ $download.token.key }}}}
    {{- end }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {memory: 512Mi}
  securityContext:
    {{- include "assay.containersecurity" . | nindent 4 }}
  volumeMounts:
    - {name: download, mountPath: /download, readOnly: true}
    - {name: models, mountPath: {{ .Values.modelCache.mountPath }}}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* The pod of a job. Takes root, name, job, worker and args. */}}
{{- define "assay.pod" -}}
{{- $root := .root -}}
{{- $worker := .worker -}}
{{- $gpu := int $worker.gpu.count -}}
metadata:
  annotations:
    checksum/config: {{ include "assay.config" $root | sha256sum }}
    checksum/job: {{ dict "definition" .job.definition "files" (.job.files | default dict) | toJson | sha256sum }}
    {{- with $root.Values.modelCache.download.models }}
    checksum/models: {{ toJson . | sha256sum }}
    {{- end }}
    {{- with $worker.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "assay.labels" $root | nindent 4 }}
    app.kubernetes.io/component: worker
    assay/job: {{ .name }}
    {{- with $worker.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ $worker.serviceAccountName | default (include "assay.serviceaccount" $root) }}
  # Workers ask the cluster nothing; cloud identities bring a token of their own.
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "assay.termination" $root }}
  {{- if ne $worker.mode "deployment" }}
  restartPolicy: Never
  {{- end }}
  {{- include "assay.pullsecrets" $root | nindent 2 }}
  securityContext:
    {{- include "assay.podsecurity" $root | nindent 4 }}
  {{- with $worker.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $worker.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $worker.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ toYaml . | nindent 6 | trim }}
      labelSelector:
        matchLabels:
          {{- include "assay.selector" $root | nindent 10 }}
          assay/job: {{ $.name }}
    {{- end }}
  {{- end }}
  {{- if $root.Values.modelCache.download.models }}
  initContainers:
    {{- include "assay.download" $root | nindent 4 }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "assay.image" (dict "root" $root "gpu" $gpu) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ toJson (concat (list "--config" "/etc/assay/config/config.toml" "--log" $worker.log) .args) }}
      workingDir: /tmp
      env:
        {{- include "assay.env" (dict "root" $root "env" $worker.env "gpu" $gpu) | nindent 8 }}
      ports:
        - {name: metrics, containerPort: 9464, protocol: TCP}
      # Answers once the models are loaded.
      startupProbe:
        httpGet: {path: /startupz, port: metrics}
        periodSeconds: 5
        failureThreshold: {{ div (add (int $worker.probes.startupSeconds) 4) 5 }}
      # Fails when the device thread is dead.
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: {{ int $worker.probes.periodSeconds }}
        timeoutSeconds: 5
        failureThreshold: {{ int $worker.probes.failureThreshold }}
      # Holds while the worker is a member of its consumer groups.
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: {{ int $worker.probes.periodSeconds }}
        timeoutSeconds: 5
        failureThreshold: 1
      {{- $resources := deepCopy $worker.resources }}
      {{- if gt $gpu 0 }}
      {{- $resources = mergeOverwrite $resources (dict "limits" (dict $worker.gpu.resource $gpu)) }}
      {{- end }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "assay.containersecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "assay.mounts" (dict "root" $root "more" $worker.extraVolumeMounts) | nindent 8 }}
  volumes:
    {{- include "assay.volumes" (dict "root" $root "jobs" (list .name) "more" $worker.extraVolumes) | nindent 4 }}
{{- end -}}

{{/* The spec of a run that ends. Takes worker and pod. */}}
{{- define "assay.once" -}}
{{- $once := .worker.once -}}
backoffLimit: {{ int $once.backoffLimit }}
{{- if gt (int $once.activeDeadlineSeconds) 0 }}
activeDeadlineSeconds: {{ int $once.activeDeadlineSeconds }}
{{- end }}
ttlSecondsAfterFinished: {{ int $once.ttlSecondsAfterFinished }}
podFailurePolicy:
  rules:
    # 2 wrong configuration or job, 4 the source cannot go on, 5 the tables cannot be written: another attempt would end alike.
    - action: FailJob
      onExitCodes: {containerName: worker, operator: In, values: [2, 4, 5]}
    # A drained node is not the run's fault.
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
template:
  {{- .pod | nindent 2 }}
{{- end -}}
