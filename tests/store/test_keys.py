"""The code defines each kind of key once, and the docs name all of them."""

import re
from pathlib import Path

from chronoverse.store.keys import JOB_KEYS, WORKFLOW_KEYS


def test_the_docs_name_each_kind_of_key_and_its_type() -> None:
    """The key ``workflows`` belongs to no workflow, so it is in none of the code's tables."""
    docs = Path("docs/redis.md").read_text("utf-8")
    of_jobs = re.findall(r"\}:<job>:(\w+)` \| (\w+) \|", docs)
    of_workflows = re.findall(r"\{<workflow>\}:(\w+)` \| (\w+) \|", docs)

    assert dict(of_jobs) == dict(JOB_KEYS)
    assert dict(of_workflows) == dict(WORKFLOW_KEYS)
