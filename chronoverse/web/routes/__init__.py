"""The routes. Each module makes one blueprint from the worker's :class:`Dependencies`.

events     a log as an event stream; workflow_events: the jobs of a workflow as one
wait       one answer when a line comes or the job ends
logs       pages of a log, the search in it and in a whole workflow, new lines, the summary
raw        a log as a download
jobs       the jobs of a workflow
workflows  the list of workflows
publish    what runners send
otlp       what OpenTelemetry's exporters send
admin      redaction, deletion and the audit trail
watches    whom to tell what of a workflow's jobs
ops        health, metrics, the OpenAPI document
ui         the page in the browser
"""
