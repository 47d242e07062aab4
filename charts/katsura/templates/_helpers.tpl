{{- /* One installation per namespace: names are fixed, the operator and the pods rely on them (docs/control-plane.md). */ -}}

{{- define "katsura.labels" -}}
app.kubernetes.io/part-of: katsura
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels of the pods of one role: dict "role" name "root" $. */ -}}
{{- define "katsura.roleLabels" -}}
app.kubernetes.io/part-of: katsura
katsura.dev/role: {{ .role }}
{{- end }}

{{- /* Reference of an image: dict "image" .Values.image.x "root" $. Images with the demo's model have tags of their own. */ -}}
{{- define "katsura.image" -}}
{{- $root := .root -}}
{{- $tag := .image.tag | default (printf "%s%s" $root.Chart.AppVersion (ternary "-demo" "" (and $root.Values.demo.enabled (ne .image.repository $root.Values.image.operator.repository)))) -}}
{{- $root.Values.image.registry }}{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "katsura.secret" -}}
{{ .Values.store.existingSecret | default "katsura" }}
{{- end }}

{{- /* Files that store URLs name: those of mutual TLS between our pods, and those of a server of yours. */ -}}
{{- define "katsura.tlsVolumes" -}}
# Made by the operator or by cert-manager: this pod waits for it.
- name: tls
  secret: {secretName: katsura-tls, defaultMode: 288}
- name: store
  secret:
    secretName: {{ include "katsura.secret" . }}
    defaultMode: 288
    optional: true
    items:
      - {key: store-ca.crt, path: ca.crt}
      - {key: store-tls.crt, path: tls.crt}
      - {key: store-tls.key, path: tls.key}
{{- end }}

{{- define "katsura.tlsMounts" -}}
- {name: tls, mountPath: /etc/katsura/tls, readOnly: true}
- {name: store, mountPath: /etc/katsura/store, readOnly: true}
{{- end }}

{{- /* A store's URL with the files of its TLS: dict "url" "folder" "tls" (which of ca, certificate, key there are). */ -}}
{{- define "katsura.storeUrl" -}}
{{- $files := list }}
{{- if .tls.ca }}{{ $files = append $files (printf "ssl_ca_certs=%s/ca.crt" .folder) }}{{ end }}
{{- if .tls.certificate }}{{ $files = append $files (printf "ssl_certfile=%s/tls.crt&ssl_keyfile=%s/tls.key" .folder .folder) }}{{ end }}
{{- .url }}{{ if and $files (or (hasPrefix "rediss:" .url) (hasPrefix "valkeys:" .url)) }}{{ ternary "&" "?" (contains "?" .url) }}{{ join "&" $files }}{{ end }}
{{- end }}

{{- define "katsura.operatorNamespace" -}}
{{ .Values.operator.namespace | default .Release.Namespace }}
{{- end }}

{{- /* What every pod of the chart shares: dict "account" name "token" bool "root" $. */ -}}
{{- define "katsura.pod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with .root.Values.podSecurity.runAsUser }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  {{- with .root.Values.podSecurity.fsGroup }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "katsura.tolerations" -}}
tolerations:
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: {{ .Values.tolerationSeconds }}}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {{ .Values.tolerationSeconds }}}
{{- end }}

{{- define "katsura.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- /* Replicas on different nodes where that is possible: dict "role" name. */ -}}
{{- define "katsura.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {katsura.dev/role: {{ .role }}}
{{- end }}

{{- /* How often the bundled Valkey syncs its file: as its store's durability needs. */ -}}
{{- define "katsura.appendfsync" -}}
{{- .Values.valkey.appendfsync | default (ternary "always" "everysec" (eq .Values.memoryStore.durability "strict")) }}
{{- end }}

{{- define "katsura.validate" -}}
{{- if and .Values.valkey.enabled .Values.memoryStore.create (ne .Values.memoryStore.durability "cache") }}
{{- if not .Values.valkey.persistence.enabled }}
{{- fail "valkey.persistence.enabled=false loses all trees with its pod: set memoryStore.durability=cache" }}
{{- end }}
{{- if and (eq .Values.memoryStore.durability "strict") (ne (include "katsura.appendfsync" .) "always") }}
{{- fail "memoryStore.durability=strict needs valkey.appendfsync=always (or empty); or set memoryStore.durability=relaxed" }}
{{- end }}
{{- end }}
{{- if and .Values.store.url .Values.valkey.enabled }}
{{- fail "store.url names a server, so the bundled one has no part: set valkey.enabled=false" }}
{{- end }}
{{- if and .Values.store.url .Values.store.existingSecret }}
{{- fail "store.url would be ignored: it belongs into store.existingSecret, as the key store-url" }}
{{- end }}
{{- if and (or .Values.store.tls.ca .Values.store.tls.certificate) (not .Values.store.url) }}
{{- fail "store.tls belongs to store.url; with store.existingSecret its keys are store-ca.crt, store-tls.crt and store-tls.key" }}
{{- end }}
{{- if ne (empty .Values.store.tls.certificate) (empty .Values.store.tls.key) }}
{{- fail "store.tls.certificate and store.tls.key belong together" }}
{{- end }}
{{- if not (or .Values.store.url .Values.store.existingSecret .Values.valkey.enabled) }}
{{- fail "trees need a store: set store.url, or store.existingSecret, or valkey.enabled=true" }}
{{- end }}
{{- if and (not .Values.operator.enabled) (not .Values.operator.namespace) }}
{{- fail "operator.enabled=false needs operator.namespace: where the operator runs that serves this namespace" }}
{{- end }}
{{- range $value, $api := dict
  "metrics.podMonitor" "monitoring.coreos.com/v1"
  "metrics.prometheusRule" "monitoring.coreos.com/v1"
  "gateway.httpRoute" "gateway.networking.k8s.io/v1"
  "certificates.certManager" "cert-manager.io/v1"
}}
{{- $path := splitList "." $value }}
{{- if and (index $.Values (first $path) (last $path)).enabled (not ($.Capabilities.APIVersions.Has $api)) }}
{{- fail (printf "%s.enabled needs definitions that this cluster does not have: %s" $value $api) }}
{{- end }}
{{- end }}
{{- if and .Values.gateway.httpRoute.enabled (not .Values.gateway.httpRoute.parentRefs) }}
{{- fail "gateway.httpRoute.enabled needs gateway.httpRoute.parentRefs: the Gateway that takes requests in" }}
{{- end }}
{{- if and .Values.gateway.ingress.enabled (not .Values.gateway.ingress.host) }}
{{- fail "gateway.ingress.enabled needs gateway.ingress.host" }}
{{- end }}
{{- end }}

{{- /* Account and rights of a hook: dict "name" "hook" "rules" "root" $. The tests' belong to the release (hook ""): Helm
would count each of them as a test. */ -}}
{{- define "katsura.hookAccount" }}
{{- $meta := dict "name" .name "namespace" .root.Release.Namespace "labels" (include "katsura.labels" .root | fromYaml)
}}
{{- if .hook }}
{{- $_ := set $meta "annotations" (dict "helm.sh/hook" .hook "helm.sh/hook-weight" "-5" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded") }}
{{- end }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- toYaml $meta | nindent 2 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- toYaml $meta | nindent 2 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- toYaml $meta | nindent 2 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}}
subjects:
  - {kind: ServiceAccount, name: {{ .name }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{- /* Pod of a hook: dict "name" "command" "root" $. */ -}}
{{- define "katsura.hookPod" -}}
{{ include "katsura.pod" (dict "account" .name "token" true "root" .root) }}
containers:
  - name: {{ .command }}
    image: {{ include "katsura.image" (dict "image" .root.Values.image.services "root" .root) }}
    {{- include "katsura.container" .root | nindent 4 }}
    command: [python3, -c]
    args:
      - {{ .root.Files.Get "files/hooks.py" | toJson }}
      - {{ .command }}
    env:
      - {name: NAMESPACE, value: {{ .root.Release.Namespace }}}
      - {name: RELEASE, value: {{ .root.Release.Name }}}
      {{- if eq .command "test" }}
      - {name: GATEWAY_URL, value: "http://katsura-gateway:{{ .root.Values.gateway.service.port }}"}
      - name: STORE_URL
        valueFrom: {secretKeyRef: {name: {{ include "katsura.secret" .root }}, key: store-url}}
      {{- end }}
    resources:
      requests: {cpu: 50m, memory: 128Mi}
      limits: {memory: 512Mi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if eq .command "test" }}
      {{- include "katsura.tlsMounts" .root | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- if eq .command "test" }}
  {{- include "katsura.tlsVolumes" .root | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where spans go; the operator hands it on to the pods that it makes. */}}
{{- define "katsura.tracing" -}}
{{- with .Values.tracing.endpoint -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $.Values.tracing.share | quote }}}
{{- end -}}
{{- end }}
