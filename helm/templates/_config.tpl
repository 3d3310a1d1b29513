{{/* The configuration file, and what is known from it. */}}

{{/* A map as TOML, one dotted key a line. JSON's texts, numbers and lists are TOML's, too. Takes prefix and value. */}}
{{- define "assay.toml" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .value -}}
{{- $name := ternary $key (toJson $key) (regexMatch "^[A-Za-z0-9_-]+$" $key) -}}
{{- $path := ternary (printf "%s.%s" $prefix $name) $name (ne $prefix "") -}}
{{- if kindIs "map" $value -}}
{{- if $value -}}
{{ include "assay.toml" (dict "prefix" $path "value" $value) }}
{{- else -}}
{{ $path }} = {}
{{ end -}}
{{- else if not (kindIs "invalid" $value) -}}
{{ $path }} = {{ toJson $value }}
{{ end -}}
{{- end -}}
{{- end -}}

{{/* Values become TOML; what the chart knows better stands over what they say. */}}
{{- define "assay.config" -}}
{{- $kafka := dict -}}
{{- $sasl := .Values.kafka.sasl.mechanism -}}
{{- $tls := .Values.kafka.tls -}}
{{- if or $sasl $tls.enabled -}}
{{- $protocol := ternary (ternary "SASL_SSL" "SSL" (ne $sasl "")) "SASL_PLAINTEXT" $tls.enabled -}}
{{- $_ := set $kafka "security.protocol" $protocol -}}
{{- end -}}
{{- if $sasl }}{{ $_ := set $kafka "sasl.mechanism" $sasl }}{{ end -}}
{{- if and $tls.enabled $tls.secret -}}
{{- if $tls.caKey }}{{ $_ := set $kafka "ssl.ca.location" (printf "/etc/assay/kafka/%s" $tls.caKey) }}{{ end -}}
{{- if $tls.certKey }}{{ $_ := set $kafka "ssl.certificate.location" (printf "/etc/assay/kafka/%s" $tls.certKey) }}{{ end -}}
{{- if $tls.keyKey }}{{ $_ := set $kafka "ssl.key.location" (printf "/etc/assay/kafka/%s" $tls.keyKey) }}{{ end -}}
{{- end -}}
{{- if and (eq .Values.kafka.groupProtocol "consumer") (not (hasKey .Values.config.source.kafka.properties "group.protocol")) -}}
{{- $_ := set $kafka "group.protocol" "consumer" -}}
{{- end -}}
{{- $derived := dict "jobs" "/etc/assay/jobs" "server" (dict "address" "0.0.0.0:9464") "source" (dict "kafka" (dict "properties" $kafka)) -}}
{{- include "assay.toml" (dict "prefix" "" "value" (mergeOverwrite (deepCopy .Values.config) $derived)) -}}
{{- end -}}

{{/* Seconds of a duration such as "1m 30s". */}}
{{- define "assay.seconds" -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" . -1 -}}
{{- $number := regexFind "[0-9]+" . | float64 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $factor := get (dict "ms" 0.001 "msec" 0.001 "s" 1.0 "sec" 1.0 "second" 1.0 "seconds" 1.0 "m" 60.0 "min" 60.0 "minute" 60.0 "minutes" 60.0 "h" 3600.0 "hour" 3600.0 "hours" 3600.0) $unit -}}
{{- if not $factor }}{{ fail (printf "config.run.grace: %q is no unit of time that the chart knows; write it as 30s or 2m" $unit) }}{{ end -}}
{{- $total = addf $total (mulf $number $factor) -}}
{{- end -}}
{{- ceil $total | int -}}
{{- end -}}

{{/* The drain grace for work, as much again for the device thread, and a minute for the last commit and leaving the group. */}}
{{- define "assay.termination" -}}
{{- add (mul 2 (include "assay.seconds" .Values.config.run.grace | int)) 60 -}}
{{- end -}}

{{/* What values.schema.json cannot say, or not clearly. */}}
{{- define "assay.validate" -}}
{{- range $key, $_ := .Values.config.source.kafka.properties -}}
{{- if regexMatch "(password|secret|token|[.]pem$|username|oauthbearer)" $key -}}
{{- fail (printf "config.source.kafka.properties: %q is a secret and would stand in a ConfigMap; use kafka.sasl, kafka.tls or secrets.env" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $_ := (.Values.config.tables.options | default dict) -}}
{{- if regexMatch "(secret|password|token|account_key|access_key$|service_account_key)" $key -}}
{{- fail (printf "config.tables.options: %q is a secret and would stand in a ConfigMap; use secrets.env with ASSAY__TABLES__OPTIONS__%s" $key (upper $key)) -}}
{{- end -}}
{{- end -}}
{{- range $bucket, $options := (.Values.config.media.stores | default dict) -}}
{{- range $key, $_ := $options -}}
{{- if regexMatch "(secret|password|token|account_key|access_key$|service_account_key)" $key -}}
{{- fail (printf "config.media.stores: %q of %q is a secret and would stand in a ConfigMap; use secrets.env or a cloud identity" $key $bucket) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kafka.sasl.mechanism (not .Values.kafka.sasl.secret) -}}
{{- fail "kafka.sasl.secret: is empty; name the secret that holds user name and password" -}}
{{- end -}}
{{- if and .Values.jobs (not .Values.config.source.kafka.bootstrap_servers) (ne (.Values.config.source.kind | default "kafka") "replay") -}}
{{- fail "config.source.kafka.bootstrap_servers: is empty; name at least one broker as host:port" -}}
{{- end -}}
{{- if and .Values.jobs (not .Values.config.tables.url) -}}
{{- fail "config.tables.url: is empty; name where the tables lie, such as s3://lake/assay" -}}
{{- end -}}
{{- if and (eq .Values.modelCache.kind "hostPath") (not .Values.modelCache.hostPath) -}}
{{- fail "modelCache.hostPath: is empty; name the folder on the nodes" -}}
{{- end -}}
{{- if and .Values.modelCache.download.models (ne .Values.modelCache.kind "claim") -}}
{{- fail "modelCache.download: needs modelCache.kind=claim, else every pod would fetch for itself or change the node" -}}
{{- end -}}
{{- end -}}

{{/* What the autoscaler reads from secrets; empty when it needs none. */}}
{{- define "assay.triggersecrets" -}}
{{- $sasl := .Values.kafka.sasl -}}
{{- $tls := .Values.kafka.tls -}}
{{- if $sasl.mechanism }}
- {parameter: username, name: {{ $sasl.secret }}, key: {{ $sasl.usernameKey }}}
- {parameter: password, name: {{ $sasl.secret }}, key: {{ $sasl.passwordKey }}}
{{- end }}
{{- if and $tls.enabled $tls.secret }}
{{- if $tls.caKey }}
- {parameter: ca, name: {{ $tls.secret }}, key: {{ $tls.caKey }}}
{{- end }}
{{- if $tls.certKey }}
- {parameter: cert, name: {{ $tls.secret }}, key: {{ $tls.certKey }}}
{{- end }}
{{- if $tls.keyKey }}
- {parameter: key, name: {{ $tls.secret }}, key: {{ $tls.keyKey }}}
{{- end }}
{{- end }}
{{- end -}}
