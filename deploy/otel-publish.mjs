// Publishes log records of a Node.js program as a job.
//   npm install @opentelemetry/sdk-logs @opentelemetry/resources @opentelemetry/exporter-logs-otlp-http
//   OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:8000 OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer …" node otel-publish.mjs
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";

const job = process.argv[2] ?? `run-${Date.now()}`;
const provider = new LoggerProvider({
  resource: resourceFromAttributes({ "chronoverse.workflow": "shop", "chronoverse.job": job }),
  processors: [new BatchLogRecordProcessor({ exporter: new OTLPLogExporter() })],
});
const logger = provider.getLogger("shop");

for (let order = 1; order <= 1000; order++) {
  logger.emit({ body: `order ${order} is packed` });
}
logger.emit({ body: "all orders are packed", attributes: { "chronoverse.exit_code": 0 } });
await provider.shutdown();
