// The page at `/`: what runs here and how to use it. One file, nothing loaded from elsewhere, no secrets, and no
// addresses but those that clients use. Readable without scripts; with them, the instances stay up to date.
import { createHash } from "node:crypto";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { TANDEM_BUILD } from "../../common/version.ts";
import { kvDebtText } from "../../common/kv-debt-text.ts";
import type { FleetView, Seen } from "../pool/pool.ts";
import { ANSWER_HEADERS } from "../serving/headers.ts";
import { readinessOf } from "./models.ts";
import { PAGE_SCRIPT, PAGE_STYLE } from "./page-assets.ts";

export const PAGE_HEADERS = {
  "content-type": "text/html; charset=utf-8",
  [ANSWER_HEADERS.caching.name]: "no-store",
  "content-security-policy":
    `default-src 'none'; style-src '${hashOf(PAGE_STYLE)}'; script-src '${hashOf(PAGE_SCRIPT)}'; ` +
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
} as const;

export interface PageView {
  readonly view: FleetView;
  /** Where the reader opened the page: scheme, host and port. */
  readonly restUrl: string;
  readonly grpcAddress: string;
  /** Whether clients need an API key. */
  readonly keyed: boolean;
  /** Requests are served by pairs alone. */
  readonly strict: boolean;
}

export function page(o: PageView): string {
  const { view } = o;
  const models = [...view.models.keys()];
  // A model that lacks something is down even while another one serves.
  const { lacking, lack = Object.values(lacking).join(" ") } = readinessOf(view, o.strict);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tandem</title>
<style>${PAGE_STYLE}</style>
</head>
<body>
<header>
<h1>Tandem</h1>
<p>Prefill and decode on separate instances, one OpenAI API in front.</p>
</header>
<main>
<p id="status" class="${lack === "" ? "ready" : "waiting"}">${lack === "" ? "Ready to serve." : escape(lack)}</p>
<dl>
<dt>Models</dt><dd id="models">${models.length === 0 ? "none yet" : models.map((name) => `<code>${escape(name)}</code>`).join(" ")}</dd>
<dt>OpenAI REST</dt><dd><code>${escape(o.restUrl)}/v1</code></dd>
<dt>gRPC</dt><dd><code>${escape(o.grpcAddress)}</code></dd>
</dl>
<h2>Instances</h2>
<div class="scroll">
<table>
<thead><tr><th>Role</th><th>State</th><th>Instance</th><th>Model</th><th>Engine</th><th>KV</th><th class="n">Legs</th><th class="n">Slots</th><th class="n">Served</th></tr></thead>
<tbody id="instances">${rows(view)}</tbody>
</table>
</div>
<h2>Try it</h2>
${commands(o, models[0] ?? "MODEL")}
</main>
<footer>
<nav><a href="/v1/models">models</a> <a href="/readyz">readiness</a> <a href="/metrics">metrics</a></nav>
<span>Tandem ${escape(TANDEM_BUILD)}</span>
</footer>
<script>${PAGE_SCRIPT}</script>
</body>
</html>
`;
}

function rows({ prefill, decode }: FleetView): string {
  const seen = [...prefill, ...decode].filter(
    ({ standing }) => standing.kind === "serves" || standing.reason !== "left",
  );
  if (seen.length === 0) return `<tr><td colspan="9" class="none">No instance has registered yet.</td></tr>`;
  return seen.map(row).join("");
}

function row({ instance, standing }: Seen): string {
  const { info, load, legs, legsTotal } = instance;
  const debt = kvDebtText(load);
  const role = info.role === Role.PREFILL ? "prefill" : "decode";
  const serves = standing.kind === "serves";
  const state = serves ? "serving" : standing.reason;
  const why = standing.text === "" ? "" : ` title="${escape(withoutAddresses(standing.text))}"`;
  const cells = [
    `<td><span class="role ${role}">${role}</span></td>`,
    `<td class="state ${serves ? "ready" : "waiting"}"${why}>${escape(state)}</td>`,
    `<td><code>${escape(info.instanceId)}</code></td>`,
    `<td>${escape(info.model)}</td>`,
    `<td>${escape(`${info.engine} ${info.engineVersion}`)}</td>`,
    `<td>${escape(info.connector)}${debt === "" ? "" : `, debt ${debt}`}</td>`,
    `<td class="n">${legs}</td>`,
    `<td class="n">${info.slotLimit}</td>`,
    `<td class="n">${legsTotal}</td>`,
  ];
  return `<tr>${cells.join("")}</tr>`;
}

function commands({ restUrl, grpcAddress, keyed }: PageView, model: string): string {
  const key = keyed ? ` -H "authorization: Bearer $OPENAI_API_KEY"` : "";
  const messages = [{ role: "user", content: "What is Tandem?" }];
  const generate = { prompt: "The router", max_tokens: 64, temperature: 0 };
  const json = "-H 'content-type: application/json'";
  const lines = {
    "Chat, streamed": [
      `curl -N ${restUrl}/v1/chat/completions${key}`,
      json,
      `-d ${shellQuoted({ model, stream: true, temperature: 0, messages })}`,
    ],
    "A completion": [`curl ${restUrl}/v1/completions${key}`, json, `-d ${shellQuoted({ model, ...generate })}`],
    "The same over gRPC": [
      `grpcurl -plaintext${key} -d ${shellQuoted(generate)}`,
      `${grpcAddress} tandem.inference.v1.InferenceService/Generate`,
    ],
  };
  return Object.entries(lines)
    .map(([title, line]) => `<h3>${title}</h3><pre><code>${escape(line.join(" \\\n  "))}</code></pre>`)
    .join("\n");
}

function shellQuoted(body: object): string {
  return `'${JSON.stringify(body).replaceAll("'", `'\\''`)}'`;
}

function withoutAddresses(text: string): string {
  return text.replace(/\S+:\d{2,5}\b/g, "…");
}

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

function hashOf(text: string): string {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}
