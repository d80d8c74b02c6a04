"""The kinds of keys stand once in the code, and the key map names each of them."""

import re

import chronoverse.store
from chronoverse.store.keys import JOB_KEYS, WORKFLOW_KEYS


def test_the_key_map_names_each_kind_and_its_type() -> None:
    """The map is the docstring of the package. The key ``workflows`` belongs to none, so no table has it."""
    key_map = chronoverse.store.__doc__ or ""
    of_jobs = re.findall(r"\}:<job>:(\w+) +(\w+)", key_map)
    of_workflows = re.findall(r"\{<workflow>\}:(\w+) +(\w+)", key_map)

    assert dict(of_jobs) == dict(JOB_KEYS)
    assert dict(of_workflows) == dict(WORKFLOW_KEYS)
