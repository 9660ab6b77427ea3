// docs/ against the code: what people read names what there is, all of it, and nothing else; and its links lead somewhere.
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { loadConfig } from "../services/common/config.ts";
import { FAILURES } from "../services/common/errors.ts";
import { createMetrics, type MetricInfo } from "../services/common/metrics.ts";
import { REFUSED_FIELDS } from "../services/kv/forbidden.ts";
import { routerConfig } from "../services/router/config.ts";
import { startRouter } from "../services/router/main.ts";
import { REASONS } from "../services/router/pool/standing.ts";
import { ROUTES } from "../services/router/rest/app.ts";
import { startRest } from "./router/rest/support/rest.ts";
import { logSink } from "./support/log-sink.ts";
import { moduleUrl } from "./support/script.ts";

interface Folder {
  readonly imports: ReadonlySet<string>;
  readonly starts: ReadonlySet<string>;
  readonly packages: ReadonlySet<string>;
}
const picture = (await import(moduleUrl("scripts/import-picture.mjs"))) as {
  graphOf(folders: ReadonlyMap<string, Folder>): string;
};

const { filesUnder } = (await import(moduleUrl("scripts/imports.mjs"))) as { filesUnder(folder: string): string[] };

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
    assert.deepEqual(firstCells("docs/errors.md", "<!-- table: errors -->"), Object.keys(FAILURES));
  });

  it("has every metric of a router, and no page names another", async () => {
    const metrics = await metricsOfRouters();
    assert.deepEqual(firstCells("docs/metrics.md", "<!-- table: metrics -->"), sorted([...metrics.keys()]));
    // The changelog also names those that there were.
    const pages = PAGES.filter((page) => page !== "CHANGELOG.md");
    const unknown = pages.flatMap((page) =>
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

  it("has every setting of a router, with its variable, range and default, and says which are live", () => {
    const chapter = textOf("docs/config.md").split("\n## router\n")[1]!.split("\n## ")[0]!;
    for (const { key, live } of routerConfig.options.values())
      assert.match(chapter, new RegExp(`^\\| \`--${key}\`.* \\| ${live ? "yes" : ""} \\| [^|]+ \\|$`, "m"));
    const row =
      "| `--queue.limit` | `TANDEM_QUEUE_LIMIT` | an integer from 0 to 65536 (requests) | 256 requests | yes | ";
    assert.ok(chapter.includes(row));
    assert.match(chapter, /\n### router: OpenAI REST\n\n\| Flag \|.*\n.*\n\| `--rest\.listen`, `--port` \|/);
  });

  it("has every refused field", () => {
    const fields = REFUSED_FIELDS.map(({ field }) => field);
    assert.deepEqual(firstCells("docs/api.md", "<!-- table: refused-fields -->"), fields);
  });

  it("says what to do about every reason for which an instance is out", () => {
    assert.deepEqual(sorted(firstCells("docs/operations.md", "## Why an instance is out")), sorted([...REASONS]));
  });
});

describe("the documentation", () => {
  it("has an index that names every page", () => {
    const named = [...textOf("docs/README.md").matchAll(/\]\(([^)#]+\.md)/g)].map(([, path]) => path!);
    const pages = DOCS.filter((file) => !file.startsWith("docs/adr/") && file !== "docs/README.md");
    assert.deepEqual(
      pages.filter((page) => !named.includes(relative("docs", page))),
      [],
    );
  });

  it("names files of the code that there are", () => {
    const files = ["services", "clients", "scripts", "test"].flatMap(filesUnder).map((file) => `/${file}`);
    // Decisions tell of the code as it was.
    const gone = PAGES.filter((page) => !page.startsWith("docs/adr/")).flatMap((page) =>
      [...textOf(page).matchAll(/`([a-z0-9/.-]+\.(?:ts|mjs|cjs))`/g)]
        .map(([, name]) => name!)
        .filter((name) => !files.some((file) => file.endsWith(`/${name}`)))
        .map((name) => `${page}: ${name}`),
    );
    assert.deepEqual(gone, []);
  });

  it("links to files and headings that there are", () => {
    const broken = PAGES.flatMap((page) =>
      [...textOf(page).matchAll(/\]\((?!https?:|mailto:)([^)\s]*)\)/g)]
        .map(([, target]) => target!)
        .filter((target) => !leadsSomewhere(page, target))
        .map((target) => `${page}: ${target}`),
    );
    assert.deepEqual(broken, []);
  });
});

describe("the picture of the imports", () => {
  const folder = (...imports: string[]): Folder => ({
    imports: new Set(imports),
    starts: new Set(),
    packages: new Set(),
  });
  const arrowsIn = (graph: string): string[] => graph.split("\n").filter((line) => line.includes("->"));

  it("has every folder of the services, and those inside the router", () => {
    const drawn = [...textOf("docs/images/imports.svg").matchAll(/<title>([^<]*)<\/title>/g)].map(([, title]) =>
      title!.replaceAll("&#45;", "-"),
    );
    const foldersIn = (path: string): string[] =>
      readdirSync(join(ROOT, path), { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map(({ name }) => name);
    const wanted = [
      ...foldersIn("services").filter((name) => name !== "router"),
      ...foldersIn("services/router").map((name) => `router/${name}`),
    ];
    assert.deepEqual(
      wanted.filter((name) => !drawn.includes(name)),
      [],
    );
  });

  it("leaves out an arrow that others stand for", () => {
    const graph = picture.graphOf(
      new Map([
        ["a", folder("b", "c")],
        ["b", folder("c")],
        ["c", folder()],
      ]),
    );
    assert.deepEqual(
      arrowsIn(graph).map((line) => line.trim()),
      ['"a" -> "b"', '"b" -> "c"'],
    );
  });

  it("draws a circle in red", () => {
    const graph = picture.graphOf(
      new Map([
        ["a", folder("b")],
        ["b", folder("a")],
        ["c", folder("a")],
      ]),
    );
    assert.equal(arrowsIn(graph).filter((line) => line.includes("#dc2626")).length, 2);
  });
});

function leadsSomewhere(page: string, target: string): boolean {
  const [path, heading] = target.split("#");
  const file = path === "" ? page : join(dirname(page), path!);
  if (!existsSync(join(ROOT, file))) return false;
  return heading === undefined || anchorsOf(file).includes(heading);
}

/** As GitHub makes them. */
function anchorsOf(file: string): string[] {
  return [...textOf(file).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-"),
  );
}
