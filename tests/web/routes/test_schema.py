"""schemathesis checks the service against ``/openapi.json``, with requests at the limits of its schemas."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.service import Service
from tests.support.tools import tool
from tests.web.routes.foreign import Foreign

#: A fixed seed makes failures reproducible.
SEED: Final = 1


@pytest.fixture(scope="module", autouse=True)
def jobs(service: Service) -> None:
    """The job in ``schemathesis.toml``, and another job of its workflow."""
    assert service.redis_url is not None
    Foreign(service.redis_url, "schema", "ended").lines(["x"] * 50, ("stdout", "stderr")).end()
    Foreign(service.redis_url, "schema", "running").lines(["x"] * 5)


@pytest.mark.long
def test_the_service_follows_its_openapi_document(service: Service, tmp_path: Path) -> None:
    """With valid and invalid requests of every kind.

    No 5xx and no undocumented response. Valid requests are accepted, invalid ones rejected.
    """
    before = service.log_size()
    command = [tool("schemathesis"), "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run"]
    command += [f"{service.url}/openapi.json", "--header", f"Authorization: Bearer {service.token()}"]
    # Requests at the limits of each schema. Random ones take 25% more time, and find nothing else.
    command += ["--phases", "coverage", "--seed", str(SEED), "--request-timeout", "20", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 0, done.stdout
    assert "Traceback" not in service.logs(before)
