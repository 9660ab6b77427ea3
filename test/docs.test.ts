// docs/ against the code: what people read names what there is, all of it, and nothing else.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadConfig } from "../services/common/config.ts";
import { FAILURES } from "../services/common/errors.ts";
import { createMetrics, type MetricInfo } from "../services/common/metrics.ts";
import { REFUSED_FIELDS } from "../services/kv/forbidden.ts";
import { routerConfig } from "../services/router/config.ts";
import { startRouter } from "../services/router/main.ts";
import { ROUTES } from "../services/router/rest/app.ts";
import { startRest } from "./router/rest/support/rest.ts";
import { logSink } from "./support/log-sink.ts";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const textOf = (file: string): string => readFileSync(join(ROOT, file), "utf8");

const DOCS = readdirSync(join(ROOT, "docs"), { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".md"))
  .map((name) => `docs/${name}`);
const PAGES = [...DOCS, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];

/** The first cells of the table that follows `<!-- table: NAME -->`, or a heading, without their backticks. */
function firstCells(file: string, after: string): string[] {
  const [, text] = textOf(file).split(`${after}\n`);
  const [table] = /^\|.*(\n\|.*)+/m.exec(text!)!;
  return table
    .split("\n")
    .slice(2)
    .map((row) => /^\| `([^`]+)`/.exec(row)![1]!);
}

const sorted = (names: readonly string[]): string[] => [...names].sort();

/** What a router registers, without Consul and with it. */
async function metricsOfRouters(): Promise<ReadonlyMap<string, MetricInfo>> {
  const argv = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--consul.address=127.0.0.1:1"];
  const all = new Map<string, MetricInfo>();
  for (const kind of ["embedded", "consul"]) {
    const metrics = createMetrics();
    const config = loadConfig(routerConfig, { argv: [...argv, `--registry.kind=${kind}`], env: {} });
    await using _router = await startRouter(config, { log: logSink().log, metrics });
    for (const metric of metrics.list()) all.set(metric.name, metric);
  }
  return all;
}

describe("the reference", () => {
  it("has every failure", () => {
    assert.deepEqual(sorted(firstCells("docs/errors.md", "<!-- table: errors -->")), sorted(Object.keys(FAILURES)));
  });

  it("has every metric of a router, and no page names another", async () => {
    const metrics = await metricsOfRouters();
    assert.deepEqual(firstCells("docs/metrics.md", "<!-- table: metrics -->"), sorted([...metrics.keys()]));
    const unknown = PAGES.flatMap((page) =>
      [...textOf(page).matchAll(/\btandem_[a-z_]+[a-z]\b/g)]
        .map(([name]) => name)
        .filter((name) => !metrics.has(name) && !metrics.has(name.replace(/_(bucket|sum|count)$/, "")))
        .map((name) => `${page}: ${name}`),
    );
    assert.deepEqual(unknown, []);
  });

  it("has every path, with the method that it takes", async () => {
    assert.deepEqual(
      firstCells("docs/api.md", "<!-- table: routes -->"),
      Object.entries(ROUTES).map(([path, { method }]) => `${method} ${path}`),
    );
    await using rest = await startRest();
    for (const [path, { method }] of Object.entries(ROUTES)) {
      const ask = async (how: string): Promise<number> => {
        const response = await fetch(`${rest.url}${path.replace("{id}", "tiny")}`, { method: how });
        await response.arrayBuffer();
        return response.status;
      };
      assert.equal(await ask(method), method === "GET" ? 200 : 400, path);
      assert.equal(await ask(method === "GET" ? "POST" : "GET"), 405, path);
    }
  });

  it("has every refused field", () => {
    const fields = REFUSED_FIELDS.map(({ field }) => field);
    assert.deepEqual(firstCells("docs/api.md", "<!-- table: refused-fields -->"), fields);
  });
});
