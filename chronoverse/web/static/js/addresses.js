// The addresses of the pages. Ids come from the service and are untrusted, so they are encoded.

export const IDENTIFIER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export const workflowPage = (workflow) => `/ui/workflows/${encodeURIComponent(workflow)}`;
export const jobPage = (workflow, job) => `${workflowPage(workflow)}/jobs/${encodeURIComponent(job)}`;

/** The labels of the runs to compare with, from the page's address, as request parameters. */
export const againstLabels = () => new URLSearchParams(location.search).getAll("against_label").map((label) => ["against_label", label]);
