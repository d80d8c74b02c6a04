// The page of an unknown address, with a link to the workflow in it.

import { IDENTIFIER, workflowPage } from "./addresses.js";
import { $, link } from "./dom.js";

document.title = "Page not found · Chronoverse";
const [, , kind, named = ""] = location.pathname.split("/");
if (kind === "workflows" && IDENTIFIER.test(named)) $("ways").append(" · ", link(workflowPage(named), named));
