// `npm run bench -- tls`: the same load through three deployments by turns: in clear, with TLS between the processes, and
// with TLS for REST too.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { boolean, defineConfig, integer, loadConfig, number } from "../../../services/common/config.ts";
import { createAuthority, signLeaf, validFor } from "../../cli/certs/authority.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { cpuMs } from "../procfs.ts";
import { processesOf, startUp } from "../processes.ts";
import { loadSettings, reportOf, runLoad, type LoadReport, type LoadResult } from "../run-load.ts";
import { formatMs, jsonFile, writeJson } from "./output.ts";

const tlsBenchConfig = defineConfig(
  "bench tls",
  {
    ...loadSettings({ requests: 192, streams: 64, rampMs: 500, tokens: 64, promptWords: 32 }),
    rounds: integer("rounds", "Rounds through each deployment.", { default: 3, min: 1, max: 100 }),
    decodeMs: number("decode_ms", "Time that the simulated engines take for a token.", {
      default: 25,
      min: 0,
      unit: "ms",
    }),
    json: jsonFile,
    quiet: boolean("quiet", "Print no progress on standard error.", { default: false }),
  },
  {
    summary: "Compares a deployment with TLS with the same one in clear.",
    usage: "npm run bench -- tls [--streams 64] [--json FILE]",
  },
);

const VARIANTS = ["in clear", "TLS between processes", "TLS for REST too"] as const;
type Variant = (typeof VARIANTS)[number];

interface Measured {
  readonly report: LoadReport;
  /** Milliseconds of CPU per 1,000 chunks, by process. */
  readonly cpu: ReadonlyMap<string, number>;
}

export async function runTlsBench(argv: readonly string[]): Promise<void> {
  const config = loadConfig(tlsBenchConfig, { argv, env: process.env });
  const say = (line: string): unknown => (config.quiet ? undefined : process.stderr.write(`${line}\n`));
  using certificates = makeCertificates();
  const flags = ["--engine", "sim", `--engine.flag=--sim.decode_ms_per_token=${config.decodeMs}`];
  const slots = { TANDEM_SLOTS: `${Math.max(64, config.streams * 2)}` };
  say("starting three deployments ...");
  await using clear = await startUp(flags, slots);
  await using inside = await startUp(flags, { ...slots, ...certificates.env, TANDEM_REST_TLS: "false" });
  await using both = await startUp(flags, { ...slots, ...certificates.env });
  const deployments = [
    { variant: VARIANTS[0], run: clear.run, url: clear.url, ca: undefined },
    { variant: VARIANTS[1], run: inside.run, url: inside.url, ca: undefined },
    { variant: VARIANTS[2], run: both.run, url: both.url, ca: certificates.ca },
  ];
  const load = { ...config, model: (await openAiClient(clear.url).models())[0]!.id };
  say("warming up ...");
  const warm = { ...load, seed: config.seed + 1, requests: Math.min(config.requests, config.streams) };
  for (const { url, ca } of deployments) await runLoad(url, warm, "", ca);

  const results = new Map<Variant, LoadResult[]>(VARIANTS.map((variant) => [variant, []]));
  const spentMs = new Map<Variant, Map<string, number>>(VARIANTS.map((variant) => [variant, new Map()]));
  for (let round = 0; round < config.rounds; round++) {
    // In another order each time, so that warm-up and wear affect all.
    for (let turn = 0; turn < deployments.length; turn++) {
      const { variant, run, url, ca } = deployments[(turn + round) % deployments.length]!;
      const processes = processesOf(run).filter(({ name }) => ["router", "prefill-1", "decode-1"].includes(name));
      const before = processes.map(({ pid }) => cpuMs(pid));
      results.get(variant)!.push(await runLoad(url, load, "", ca));
      const spent = spentMs.get(variant)!;
      processes.forEach(({ pid, name }, index) =>
        spent.set(name, (spent.get(name) ?? 0) + cpuMs(pid) - before[index]!),
      );
      say(`round ${round + 1} ${variant}: done`);
    }
  }
  const measured = VARIANTS.map((variant): Measured => {
    const report = reportOf(results.get(variant)!);
    const cpu = [...spentMs.get(variant)!].map(([name, ms]) => [name, (ms * 1000) / report.chunks] as const);
    return { report, cpu: new Map(cpu) };
  });
  process.stdout.write(render(measured, config.streams));
  const figures = VARIANTS.map((variant, index) => ({
    variant,
    report: measured[index]!.report,
    cpuMsPer1000Chunks: Object.fromEntries(measured[index]!.cpu),
  }));
  writeJson(config.json, { scenario: "tls", settings: config.settings.all, figures });
  if (measured.some(({ report }) => report.failed > 0)) process.exitCode = 1;
}

function render(measured: readonly Measured[], streams: number): string {
  const rows = [
    ...[...measured[0]!.cpu.keys()].map((name) => ({
      title: `${name}, CPU ms / 1,000 chunks`,
      values: measured.map(({ cpu }) => cpu.get(name) ?? Number.NaN),
    })),
    { title: "TTFT p50, ms", values: measured.map(({ report }) => report.ttft.p50) },
    { title: "TTFT p99, ms", values: measured.map(({ report }) => report.ttft.p99) },
  ];
  const lines = [
    `${streams} streams, ${measured[0]!.report.requests} requests and ${measured[0]!.report.chunks} chunks each`,
    "",
    renderTable(rows, [
      { title: "", cell: ({ title }) => title },
      ...VARIANTS.map((variant, index) => ({
        title: variant,
        align: "right" as const,
        cell: ({ values }: (typeof rows)[number]) => formatMs(values[index]!),
      })),
    ]),
    "",
    `failed: ${measured.map(({ report }) => report.failed).join(", ")}`,
    ...measured.flatMap(({ report }) => report.errors).map((error) => `error: ${error}`),
  ];
  return `${lines.join("\n")}\n`;
}

function makeCertificates() {
  const folder = mkdtempSync(join(tmpdir(), "tandem-bench-certs-"));
  const put = (name: string, content: string): string => {
    const path = join(folder, name);
    writeFileSync(path, content, { mode: 0o600 });
    return path;
  };
  const authority = createAuthority("bench", validFor(1));
  const leaf = signLeaf(authority, ["localhost", "127.0.0.1"], validFor(1));
  return {
    ca: authority.cert,
    env: {
      TANDEM_TLS_CERT: put("cert.pem", leaf.cert),
      TANDEM_TLS_KEY: put("key.pem", leaf.key),
      TANDEM_TLS_CA: put("ca.pem", authority.cert),
    },
    [Symbol.dispose]: () => rmSync(folder, { recursive: true }),
  };
}
