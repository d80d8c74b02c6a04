"""The routes. Each module makes one blueprint from the worker's :class:`Dependencies`.

events     a log as an event stream
wait       one answer when a line comes or the job ends
logs       a log in pages
search     the matching lines of a log or of a whole workflow, in pages
new_lines  the lines of a log that are new, compared with other runs
summary    the new lines, the errors and the last lines of a log
raw        a log as a download
jobs       the jobs of a workflow
workflows  the list of workflows
publish    what runners send
admin      redaction and deletion
ops        health, metrics, the OpenAPI document
ui         the page in the browser
"""
