{{- define "kompakt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "kompakt.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "kompakt.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "kompakt.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kompakt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kompakt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kompakt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: kompakt
{{ include "kompakt.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kompakt.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kompakt.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* include "kompakt.image" (list $ "operator") */}}
{{- define "kompakt.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- printf "%skompakt-%s:%s" (ternary "" (printf "%s/" (trimSuffix "/" .registry)) (empty .registry)) (index $ 1) (default $root.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}
