{{/*
All models that are enabled, each with its defaults, as JSON: {NAME: MODEL}.
*/}}
{{- define "kserve-llamacpp.models" -}}
{{- $models := dict -}}
{{- range $name, $given := .Values.models -}}
{{- $model := mustMergeOverwrite (deepCopy $.Values.modelDefaults) (deepCopy (default dict $given)) -}}
{{- if $model.enabled -}}
{{- $isKServe := eq $model.kind "InferenceService" -}}
{{- $isKnative := and $isKServe (eq $model.deploymentMode "Knative") -}}
{{- if $isKnative -}}
{{- /* Knative lets its timeout run for 30 seconds before a pod is told; 25 are for closing. */ -}}
{{- $_ := set $model "graceSeconds" (max 0 (subf $model.timeoutSeconds 55 $model.drainDelaySeconds)) -}}
{{- end -}}
{{- $_ := set $models $name (mustMerge (dict "isKServe" $isKServe "isKnative" $isKnative) $model) -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/*
Where a model's requests go: list $ NAME MODEL. Through Knative's own address, so that its activator
sees them; otherwise to the pods themselves.
*/}}
{{- define "kserve-llamacpp.model.url" -}}
{{- if (index . 2).isKnative -}}
{{- printf "http://%s-predictor.%s.svc" (index . 1) (index . 0).Release.Namespace -}}
{{- else -}}
{{- printf "%s://%s-pods:8080" (ternary "https" "http" (ne (index . 2).tls.secretName "")) (index . 1) -}}
{{- end -}}
{{- end -}}

{{/*
The name of the model that the proxy's requests go to; empty where it is none of the release's.
*/}}
{{- define "kserve-llamacpp.proxy.model" -}}
{{- $names := keys (fromJson (include "kserve-llamacpp.models" .)) -}}
{{- if or .Values.proxy.upstreamUrl .Values.proxy.config.upstreams -}}
{{- else if .Values.proxy.model -}}
{{- /* Refused here, since no template can do without the model that it looks up by this name. */ -}}
{{- if not (has .Values.proxy.model $names) -}}
{{- fail (printf "proxy.model is %q, which is none of the enabled models (%s): name one of them." .Values.proxy.model (join ", " (sortAlpha $names) | default "there are none")) -}}
{{- end -}}
{{- .Values.proxy.model -}}
{{- else if eq (len $names) 1 -}}
{{- first $names -}}
{{- end -}}
{{- end -}}

{{/*
Where the proxy's requests go; empty where there is no model.
*/}}
{{- define "kserve-llamacpp.proxy.upstreamUrl" -}}
{{- $name := include "kserve-llamacpp.proxy.model" . -}}
{{- if $name -}}
{{- include "kserve-llamacpp.model.url" (list . $name (get (fromJson (include "kserve-llamacpp.models" .)) $name)) -}}
{{- else -}}
{{- .Values.proxy.upstreamUrl -}}
{{- end -}}
{{- end -}}

{{/*
Labels by which a model's pods are found: list $ NAME MODEL. KServe's pods have its own.
*/}}
{{- define "kserve-llamacpp.model.selectorLabels" -}}
{{- if (index . 2).isKnative -}}
serving.kserve.io/inferenceservice: {{ index . 1 }}
component: predictor
{{- else if (index . 2).isKServe -}}
app: isvc.{{ index . 1 }}-predictor
{{- else -}}
{{- include "kserve-llamacpp.selectorLabels" (list (index . 0) "predictor" (index . 1)) -}}
{{- end -}}
{{- end -}}

{{/*
The flags of a model's predictor: MODEL's own come last and win.
*/}}
{{- define "kserve-llamacpp.model.drainArgs" -}}
- --drain_delay_seconds={{ .drainDelaySeconds }}
- --grace_seconds={{ .graceSeconds }}
{{- end -}}

{{/*
Which requests share cached prefixes: MODEL.
*/}}
{{- define "kserve-llamacpp.model.sharingArgs" -}}
- --prefix_sharing={{ .prefixSharing }}
{{- if .sharedPrompts }}
- --shared_prompts=/etc/kserve-llamacpp/shared-prompts
{{- end }}
{{- end -}}

{{/*
Where the prompts that all tenants share are in a container: MODEL.
*/}}
{{- define "kserve-llamacpp.model.sharedPromptsMount" -}}
{{- if .sharedPrompts -}}
- name: shared-prompts
  mountPath: /etc/kserve-llamacpp/shared-prompts
  readOnly: true
{{- end -}}
{{- end -}}

{{/*
Where they come from: NAME.
*/}}
{{- define "kserve-llamacpp.model.sharedPromptsVolume" -}}
- name: shared-prompts
  configMap:
    name: {{ . }}-shared-prompts
{{- end -}}

{{/*
Annotations of a model's pods: MODEL. Other prompts make new pods, for they are read at the start.
*/}}
{{- define "kserve-llamacpp.model.podAnnotations" -}}
{{- $own := dict -}}
{{- if .sharedPrompts -}}
{{- $_ := set $own "checksum/shared-prompts" (toJson .sharedPrompts | sha256sum) -}}
{{- end -}}
{{- if and .tls.secretName (not (hasKey .podAnnotations "prometheus.io/scheme")) -}}
{{- $_ := set $own "prometheus.io/scheme" "https" -}}
{{- end -}}
{{- with mustMerge $own .podAnnotations -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{- define "kserve-llamacpp.model.grpcArgs" -}}
{{- if .grpc.enabled -}}
- --enable_grpc=true
- --grpc_port=8081
{{- end -}}
{{- end -}}

{{/*
gRPC's port, as a Service has it: MODEL.
*/}}
{{- define "kserve-llamacpp.model.grpcServicePort" -}}
{{- if .grpc.enabled -}}
- name: grpc
  port: 8081
  targetPort: 8081
  protocol: TCP
  {{- if not .tls.secretName }}
  appProtocol: kubernetes.io/h2c
  {{- end }}
{{- end -}}
{{- end -}}

{{/*
The predictor's container, less what the pod's maker adds: list $ NAME MODEL MODEL-DIRECTORY.
*/}}
{{- define "kserve-llamacpp.model.container" -}}
{{- $name := index . 1 -}}
{{- $model := index . 2 -}}
image: {{ include "kserve-llamacpp.image" (list (index . 0) $model.image) }}
imagePullPolicy: {{ $model.image.pullPolicy }}
args:
  - --model_name={{ $name }}
  - --model_dir={{ index . 3 }}
  - --http_port=8080
  {{- include "kserve-llamacpp.model.drainArgs" $model | nindent 2 }}
  {{- include "kserve-llamacpp.model.sharingArgs" $model | nindent 2 }}
  - --log_format=json
  {{- with include "kserve-llamacpp.model.grpcArgs" $model }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if $model.tls.secretName }}
  - --ssl_certfile=/etc/kserve-llamacpp-tls/tls.crt
  - --ssl_keyfile=/etc/kserve-llamacpp-tls/tls.key
  {{- end }}
  {{- with $model.args }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $model.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http1
    containerPort: 8080
    protocol: TCP
  {{- if $model.grpc.enabled }}
  - name: grpc
    containerPort: 8081
    protocol: TCP
  {{- end }}
{{- /* 503 until the model answers. */}}
startupProbe:
  httpGet:
    path: /v1/models/{{ $name }}
    port: 8080
    {{- if $model.tls.secretName }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ ceil (divf $model.startupSeconds 2) }}
readinessProbe:
  httpGet:
    path: /v1/models/{{ $name }}
    port: 8080
    {{- if $model.tls.secretName }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 1
{{- /* The event loop alone: an engine that dies is replaced inside the container. */}}
livenessProbe:
  httpGet:
    path: /
    port: 8080
    {{- if $model.tls.secretName }}
    scheme: HTTPS
    {{- end }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
resources:
  {{- toYaml $model.resources | nindent 2 }}
securityContext:
  {{- toYaml $model.securityContext | nindent 2 }}
{{- end -}}

{{/*
What a pod of a model has beside its container, in KServe's objects and in a Deployment alike:
list $ MODEL.
*/}}
{{- define "kserve-llamacpp.model.pod" -}}
{{- $root := index . 0 -}}
{{- $model := index . 1 -}}
{{- if $model.isKnative }}
timeout: {{ $model.timeoutSeconds }}
{{- else }}
terminationGracePeriodSeconds: {{ include "kserve-llamacpp.terminationGracePeriodSeconds" (list $model.terminationGracePeriodSeconds $model.drainDelaySeconds $model.graceSeconds) }}
{{- end }}
enableServiceLinks: false
automountServiceAccountToken: false
{{- with $model.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
