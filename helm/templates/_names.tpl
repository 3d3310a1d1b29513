{{/* Names and labels. Every helper takes the root context, or a dict with root, name and worker. */}}

{{- define "assay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough that "-" and a job's name can follow. */}}
{{- define "assay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "assay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "assay.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of a job's objects. A long one ends in a hash, so that two of them cannot meet. */}}
{{- define "assay.jobname" -}}
{{- $name := printf "%s-%s" (include "assay.fullname" .root) .name -}}
{{- if gt (len $name) 52 -}}
{{- printf "%s-%s" ($name | trunc 43 | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "assay.selector" -}}
app.kubernetes.io/name: {{ include "assay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "assay.labels" -}}
{{ include "assay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "assay.serviceaccount" -}}
{{- $own := .Values.serviceAccount -}}
{{- if $own.name }}{{ $own.name }}{{ else if $own.create }}{{ include "assay.fullname" . }}{{ else }}default{{ end -}}
{{- end -}}

{{/* Takes root and gpu (a count). */}}
{{- define "assay.image" -}}
{{- $image := .root.Values.image -}}
{{- $digest := ternary $image.cudaDigest $image.digest (gt (int .gpu) 0) -}}
{{- if $digest -}}
{{ $image.repository }}@{{ $digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ if gt (int .gpu) 0 }}{{ $image.cudaSuffix }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "assay.pullsecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
