// `npm run bench -- [SCENARIO] [--KEY VALUE ...]`, which is `tandem bench`.
import { ConfigError } from "../../services/common/config.ts";
import { nearest } from "../../services/common/nearest.ts";

interface Scenario {
  readonly summary: string;
  load(): Promise<(argv: readonly string[]) => Promise<void>>;
}

const SCENARIOS: Readonly<Record<string, Scenario>> = {
  compare: {
    summary: "What Tandem adds to a bare engine: TTFT, ITL, CPU, memory; checks every answer. The default.",
    load: async () => (await import("./scenarios/compare.ts")).runCompare,
  },
  engine: {
    summary: "The embedded engine: tokens/s, memory, and what a long prompt does to running answers.",
    load: async () => (await import("./scenarios/engine.ts")).runEngineBench,
  },
  files: {
    summary: "How many of its own files a router runs for one streamed request.",
    load: async () => (await import("./scenarios/files.ts")).runFiles,
  },
  fleet: {
    summary: "What a request costs the middle of the router, by fleet size.",
    load: async () => (await import("./scenarios/fleet.ts")).runFleetBench,
  },
  load: {
    summary: "One load against any OpenAI server: TTFT, ITL, TPOT, goodput.",
    load: async () => (await import("./scenarios/load.ts")).runLoadScenario,
  },
  memory: {
    summary: "Memory of a small system after 100 chats.",
    load: async () => (await import("./scenarios/memory.ts")).runMemory,
  },
  overload: {
    summary: "Goodput on one core shared with busy loops: the maximum, 60 % of it, and twice as much.",
    load: async () => (await import("./scenarios/overload.ts")).runOverload,
  },
  start: {
    summary: "Time from `npm start` to the first token.",
    load: async () => (await import("./scenarios/start.ts")).runStart,
  },
  strangers: {
    summary: "What callers without credentials at the gRPC port cost those who stream.",
    load: async () => (await import("./scenarios/strangers.ts")).runStrangers,
  },
  tls: {
    summary: "What TLS costs: CPU per 1,000 chunks and TTFT, beside the same deployment in clear.",
    load: async () => (await import("./scenarios/tls.ts")).runTlsBench,
  },
};

/** Runs one scenario. The exit code is 1 if a request failed, an answer was wrong, or a limit was missed. */
export async function bench(argv: readonly string[]): Promise<void> {
  const [first = "compare"] = argv;
  if (first === "--help") process.stdout.write(overview());
  const [name, rest] = first.startsWith("--") ? ["compare", argv] : [first, argv.slice(1)];
  if (Object.hasOwn(SCENARIOS, name)) return (await SCENARIOS[name]!.load())(rest);
  const meant = nearest(name, Object.keys(SCENARIOS));
  throw new ConfigError(
    `"${name}" is not a scenario.${meant === undefined ? "" : ` Did you mean "${meant}"?`} "npm run bench -- --help" lists all.`,
  );
}

function overview(): string {
  const lines = Object.entries(SCENARIOS).map(([name, scenario]) => `  ${name.padEnd(9)} ${scenario.summary}`);
  return `Scenarios (npm run bench -- SCENARIO --help shows the settings of one):\n\n${lines.join("\n")}\n\nSettings of compare:\n\n`;
}
