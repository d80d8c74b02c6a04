// The addresses of the pages. Ids come from the service and may be anything, so each is encoded.

/** What an id of a workflow or a job looks like. */
export const IDENTIFIER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export const workflowPage = (workflow) => `/ui/workflows/${encodeURIComponent(workflow)}`;
export const jobPage = (workflow, job) => `${workflowPage(workflow)}/jobs/${encodeURIComponent(job)}`;

/** The labels of the good runs to compare with that the page's address names, as parameters of a request. */
export const againstLabels = () => new URLSearchParams(location.search).getAll("against_label").map((label) => ["against_label", label]);
