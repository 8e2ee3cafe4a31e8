{{/*
Release and chart in one name, short enough for what is appended to it.
*/}}
{{- define "kserve-llamacpp.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
The proxy's name: that of all its objects.
*/}}
{{- define "kserve-llamacpp.proxy.name" -}}
{{- printf "%s-proxy" (include "kserve-llamacpp.fullname" .) -}}
{{- end -}}

{{- define "kserve-llamacpp.proxy.serviceAccountName" -}}
{{- $account := .Values.proxy.serviceAccount -}}
{{- if $account.create -}}
{{- default (include "kserve-llamacpp.proxy.name" .) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/*
Labels that stay the same from version to version, since they reach pods: list $ COMPONENT NAME.
*/}}
{{- define "kserve-llamacpp.stableLabels" -}}
{{- $root := index . 0 -}}
{{- include "kserve-llamacpp.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Labels of an object: list $ COMPONENT NAME.
*/}}
{{- define "kserve-llamacpp.labels" -}}
{{- $root := index . 0 -}}
{{- include "kserve-llamacpp.stableLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/*
Labels by which pods are found: list $ COMPONENT NAME.
*/}}
{{- define "kserve-llamacpp.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 2 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "kserve-llamacpp.proxy.labels" -}}
{{- include "kserve-llamacpp.labels" (list . "proxy" "openai-proxy") -}}
{{- end -}}

{{- define "kserve-llamacpp.proxy.selectorLabels" -}}
{{- include "kserve-llamacpp.selectorLabels" (list . "proxy" "openai-proxy") -}}
{{- end -}}

{{/*
Image reference: list $ IMAGE.
*/}}
{{- define "kserve-llamacpp.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
terminationGracePeriodSeconds: list GIVEN DRAIN-DELAY GRACE. 25 seconds are for the last events and
for closing.
*/}}
{{- define "kserve-llamacpp.terminationGracePeriodSeconds" -}}
{{- if kindIs "invalid" (index . 0) -}}
{{- add (ceil (addf (index . 1) (index . 2))) 25 -}}
{{- else -}}
{{- int64 (index . 0) -}}
{{- end -}}
{{- end -}}
