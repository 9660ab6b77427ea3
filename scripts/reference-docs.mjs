// Generates the parts of docs/ that come from the code: tables, and the picture of the imports. A page has each table
// between `<!-- table: NAME -->` and `<!-- end -->`; the rest is written by hand. `npm run gen` rewrites them; `npm run
// check` fails if they are stale.
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { importPicture } from "./import-picture.mjs";
import { ROOT, StepFailed } from "./process.mjs";

/** The programs with settings, in the order of docs/config.md. */
const CONFIGS = [
  "clients/cli/up/config",
  "services/router/config",
  "services/prefill/config",
  "services/decode/config",
  "services/tiny-engine/config",
  "clients/cli/chat/config",
  "clients/cli/status",
  "clients/cli/ls",
  "clients/cli/doctor",
  "clients/cli/explain/explain",
  "clients/cli/discover/config",
];

const TABLES = {
  settings,
  errors,
  metrics,
  "request-headers": () => headers("REQUEST_HEADERS"),
  "answer-headers": () => headers("ANSWER_HEADERS"),
  routes,
  "body-fields": bodyFields,
  "refused-fields": refusedFields,
};

export async function writeDocs() {
  for (const [file, text] of await madeDocs()) writeFileSync(join(ROOT, file), text);
}

/** @throws StepFailed naming the pages that are stale */
export async function checkDocs() {
  const now = (file) => (existsSync(join(ROOT, file)) ? readFileSync(join(ROOT, file), "utf8") : "");
  const stale = [...(await madeDocs())].filter(([file, text]) => now(file) !== text);
  if (stale.length === 0) return;
  throw new StepFailed(`${stale.map(([file]) => file).join(", ")}: stale. Run \`npm run gen\` and commit it.`);
}

/** Returns complete files by their paths. */
async function madeDocs() {
  const made = new Map([["docs/images/imports.svg", await importPicture()]]);
  const left = new Set(Object.keys(TABLES));
  for (const name of readdirSync(join(ROOT, "docs")).filter((name) => name.endsWith(".md"))) {
    const file = `docs/${name}`;
    const [first, ...parts] = readFileSync(join(ROOT, file), "utf8").split(/(?=<!-- table: )/);
    let text = first;
    for (const part of parts) {
      const [, table] = /^<!-- table: (.*) -->/.exec(part);
      const end = part.indexOf("<!-- end -->");
      if (end === -1 || !left.delete(table)) throw new StepFailed(`${file}: the table "${table}" can't be filled`);
      text += `<!-- table: ${table} -->\n\n${await TABLES[table](part.slice(0, end))}\n\n${part.slice(end)}`;
    }
    if (parts.length > 0) made.set(file, text);
  }
  if (left.size > 0) throw new StepFailed(`docs/ has no page with the table ${[...left].join(", ")}`);
  return made;
}

async function settings() {
  const parts = { ...(await built("services/common/config-help")), ...(await built("services/common/config-schema")) };
  const definitions = [];
  for (const path of CONFIGS) {
    const values = Object.entries(await built(path));
    const found = values.filter(([name, value]) => name.endsWith("Config") && typeof value?.schema === "object");
    if (found.length === 0) throw new StepFailed(`${path} exports no settings`);
    definitions.push(...found.map(([, value]) => value));
  }
  return definitions.flatMap((definition) => chapter(definition, parts)).join("\n\n");
}

/** Paragraphs on the settings of one program, with a table for each section. */
function chapter({ name, summary, schema, options }, { groupsOf, namesOf, variablesOf, defaultOf }) {
  const hasLive = [...options.values()].some(({ live }) => live);
  const code = (words) => words.map((word) => `\`${word}\``).join(", ");
  const sections = groupsOf(schema).flatMap(({ title, options }) => [
    ...(title === "" ? [] : [`### ${name}: ${title}`]),
    markdownTable(
      ["Flag", "Variable", "Value", "Default", ...(hasLive ? ["Live"] : []), "What it does"],
      options.map((option) => [
        code(namesOf(option).map((name) => `--${name}`)),
        code(variablesOf(option)),
        option.expected,
        defaultOf(option).replace(/^default /, ""),
        ...(hasLive ? [option.live ? "yes" : ""] : []),
        option.doc,
      ]),
    ),
  ]);
  return [`## ${name}`, ...(summary === "" ? [] : [summary]), ...sections];
}

/**
 * When a failure happens and what to do about it are written in the table itself, because no program reads them.
 *
 * @param now The table as it is.
 */
async function errors(now) {
  const { FAILURES } = await built("services/common/errors");
  const retries = { never: "–", elsewhere: "the same leg elsewhere", "both legs": "both legs, on another pair" };
  const rows = now.split("\n").map((line) => line.split(/(?<!\\)\|/).map((cell) => cell.trim()));
  return markdownTable(
    ["Code", "HTTP", "gRPC", "`type`", "Tried again by the router", "When", "What to do"],
    Object.entries(FAILURES).map(([code, { http, grpc, type, retry }]) => {
      const written = rows.find(([, first]) => first === `\`${code}\``)?.slice(-3, -1) ?? [];
      if (written.length !== 2 || written.includes(""))
        throw new StepFailed(
          `docs/errors.md: the last two cells of \`${code}\` must say when it happens and what to do`,
        );
      return [`\`${code}\``, http, `\`${grpc}\``, `\`${type}\``, retries[retry], ...written];
    }),
  );
}

/** The metrics that a router registers when it starts, with each kind of registry. */
async function metrics() {
  const found = new Map();
  for (const registry of ["embedded", "consul"])
    for (const metric of await metricsOfRouter(registry)) found.set(metric.name, metric);
  const units = [/_(seconds|bytes)(?:_total)?$/, /_(tokens)_total$/];
  const unitOf = (name) => units.map((unit) => unit.exec(name)?.[1]).find((unit) => unit !== undefined) ?? "";
  return markdownTable(
    ["Name", "Type", "Labels", "Unit", "What it is"],
    [...found.values()]
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map(({ name, type, labelNames, help }) => [
        `\`${name}\``,
        type,
        labelNames.map((label) => `\`${label}\``).join(", "),
        unitOf(name),
        help,
      ]),
  );
}

async function metricsOfRouter(registry) {
  const { loadConfig } = await built("services/common/config");
  const { createLog } = await built("services/common/log");
  const { createMetrics } = await built("services/common/metrics");
  const { routerConfig } = await built("services/router/config");
  const { startRouter } = await built("services/router/main");
  // Nothing listens on port 1; a router also starts without its Consul.
  const argv = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--consul.address=127.0.0.1:1"];
  const config = loadConfig(routerConfig, { argv: [...argv, `--registry.kind=${registry}`], env: {} });
  const registered = createMetrics();
  const log = createLog({ name: "router", level: "error" });
  const router = await startRouter(config, { log, metrics: registered });
  await router.stop(0);
  return registered.list();
}

async function headers(list) {
  const all = Object.values((await built("services/router/serving/headers"))[list]);
  return markdownTable(
    ["Header", "Value", "What it does"],
    all.map(({ name, value, help }) => [`\`${name}\``, value, help]),
  );
}

async function routes() {
  const { ROUTES } = await built("services/router/rest/app");
  return markdownTable(
    ["Path", "Answers"],
    Object.entries(ROUTES).map(([path, { method, help }]) => [`\`${method} ${path}\``, help]),
  );
}

async function bodyFields() {
  const { BODY_FIELDS } = await built("services/router/serving/body-fields");
  return markdownTable(
    ["Field", "Type", "Path", "What Tandem reads it for"],
    Object.entries(BODY_FIELDS).map(([field, { type, only = "both", inside, help }]) => [
      `\`${inside === undefined ? field : `${inside}.${field}`}\``,
      type,
      only,
      help,
    ]),
  );
}

async function refusedFields() {
  const { REFUSED_FIELDS } = await built("services/kv/forbidden");
  return markdownTable(
    ["Field", "Refused", "Code", "Why"],
    REFUSED_FIELDS.map(({ field, when, why, unservable }) => [
      `\`${field}\``,
      when,
      `\`${unservable === undefined ? "invalid_request" : "not_supported"}\``,
      why,
    ]),
  );
}

function markdownTable(heads, rows) {
  const line = (cells) => `| ${cells.map((cell) => String(cell).replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(heads), `|${"---|".repeat(heads.length)}`, ...rows.map(line)].join("\n");
}

function built(path) {
  const file = join(ROOT, "dist", `${path}.js`);
  if (!existsSync(file)) throw new StepFailed(`${file} is not there: its source is missing`);
  return import(pathToFileURL(file).href);
}
