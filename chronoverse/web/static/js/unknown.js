// The page of an unknown address: the ways to the workflow that it names, or to those that were opened last.

import { IDENTIFIER, workflowPage } from "./addresses.js";
import { $, link } from "./dom.js";
import { recentWorkflows } from "./recent.js";

const [, , kind, named = ""] = location.pathname.split("/");
const workflows = kind === "workflows" && IDENTIFIER.test(named) ? [named] : recentWorkflows();
$("ways").append(...workflows.flatMap((each) => [" · ", link(workflowPage(each), each)]));
