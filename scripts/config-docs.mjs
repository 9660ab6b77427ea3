// docs/config.md, from the config definitions of the built programs.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ROOT } from "./process.mjs";

/** In the order of the page. */
const SOURCES = [
  "clients/cli/up/config",
  "services/router/config",
  "services/prefill/config",
  "services/decode/config",
  "services/tiny-engine/config",
  "clients/cli/chat/config",
  "clients/cli/status/status",
  "clients/cli/ls",
  "clients/cli/doctor/doctor",
  "clients/cli/explain/explain",
  "clients/cli/discover/config",
];

/** The page; undefined while there is no definition at all. */
export async function configDocs() {
  const load = (path) => import(pathToFileURL(join(ROOT, "dist", `${path}.js`)).href);
  const sections = [];
  for (const source of SOURCES) {
    if (!existsSync(join(ROOT, "dist", `${source}.js`))) continue;
    const { configMarkdown } = await load("services/common/config-help");
    for (const [name, value] of Object.entries(await load(source))) {
      if (name.endsWith("Config") && typeof value?.schema === "object") sections.push(configMarkdown(value));
    }
  }
  if (sections.length === 0) return undefined;
  const head = `# Configuration

Written by \`npm run gen\` from the schemas: edit those. A flag beats the environment, which beats the file, which beats
the default. The file is JSON, given with \`--config FILE\` or \`TANDEM_CONFIG\`; its keys are the flags without dashes,
dotted (\`"queue.limit": 5\`) or nested. An unknown key or a bad value stops the start. On start every value is printed
with its origin.
`;
  return [head, ...sections].join("\n");
}
