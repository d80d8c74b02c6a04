"""Publishes log records of a Python program as a job.

pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:8000 OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer …"
python otel-publish.py
"""

import sys
import time

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

job = sys.argv[1] if len(sys.argv) > 1 else f"run-{time.time():.0f}"
provider = LoggerProvider(Resource({"chronoverse.workflow": "shop", "chronoverse.job": job}))
# The queue must hold all records that arrive while the exporter retries; otherwise the SDK drops some.
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(), max_queue_size=100_000))
logger = provider.get_logger("shop")


def emit(body: str, **attributes: int) -> None:
    """Publishes one record. ``__`` in the name of an attribute stands for a dot."""
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    record = LogRecord(timestamp=time.time_ns(), severity_number=SeverityNumber.INFO, body=body, attributes=named)
    logger.emit(record)


for order in range(1, 1_001):
    emit(f"order {order} is packed")
emit("all orders are packed", chronoverse__exit_code=0)
provider.shutdown()
