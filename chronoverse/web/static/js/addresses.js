// The addresses of the pages. Ids come from the service and may be anything, so each is encoded.

export const workflowPage = (workflow) => `/ui/workflows/${encodeURIComponent(workflow)}`;
export const jobPage = (workflow, job) => `${workflowPage(workflow)}/jobs/${encodeURIComponent(job)}`;
