// The commands of `tandem`. Each loads only its own code: a prefill process loads no Express, a router no engine.
import { ConfigError } from "../../services/common/config.ts";
import { nearest } from "../../services/common/nearest.ts";

interface Command {
  readonly summary: string;
  load(): Promise<(argv: readonly string[]) => Promise<void>>;
}

const COMMANDS: Readonly<Record<string, Command>> = {
  up: {
    summary: "Start everything on this machine: a router and instances.",
    load: async () => (await import("./up/up.ts")).runUp,
  },
  chat: {
    summary: "Talk to the model.",
    load: async () => (await import("./chat/chat.ts")).runChat,
  },
  status: {
    summary: "Show the instances that a router sees.",
    load: async () => (await import("./status.ts")).runStatus,
  },
  ls: {
    summary: "List the deployments that `tandem up` runs here.",
    load: async () => (await import("./ls.ts")).runLs,
  },
  doctor: {
    summary: "Find what is wrong, or would go wrong, with the instances of a router.",
    load: async () => (await import("./doctor.ts")).runDoctor,
  },
  explain: {
    summary: "Explain what became of one request, by its id.",
    load: async () => (await import("./explain/explain.ts")).runExplain,
  },
  router: {
    summary: "Run a router: OpenAI REST and gRPC in front of the instances.",
    load: async () => (await import("../../services/router/main.ts")).runRouter,
  },
  prefill: {
    summary: "Run a prefill instance: one engine that reads prompts.",
    load: async () => (await import("../../services/prefill/main.ts")).runPrefill,
  },
  decode: {
    summary: "Run a decode instance: one engine that writes answers.",
    load: async () => (await import("../../services/decode/main.ts")).runDecode,
  },
  discover: {
    summary: "Adopt vLLM engines that announce themselves by ping.",
    load: async () => (await import("./discover/discover.ts")).runDiscover,
  },
  engine: {
    summary: "Run an engine alone, without Tandem around it.",
    load: async () => (await import("../../services/tiny-engine/main.ts")).runEngine,
  },
  bench: {
    summary: "Measure latency, throughput, memory and start time.",
    load: async () => (await import("../loadgen/main.ts")).bench,
  },
  chaos: {
    summary: "Break a whole deployment under load, and check what Tandem promises.",
    load: async () => (await import("../chaos/main.ts")).chaos,
  },
  certs: {
    summary: "Make certificates for TLS: an authority for development, and what it signs.",
    load: async () => (await import("./certs/certs.ts")).runCerts,
  },
  health: {
    summary: "Check whether one service serves; exit code 0 or 1, for containers.",
    load: async () => (await import("./health.ts")).runHealth,
  },
};

/** Runs `tandem` with `argv`, which excludes the program and the script. */
export async function runCommand(argv: readonly string[]): Promise<void> {
  const [name = "help", ...rest] = argv;
  if (name === "--help" || name === "-h" || (name === "help" && rest.length === 0))
    return void process.stdout.write(overview());
  if (["--version", "-v", "-V", "version"].includes(name)) {
    const { TANDEM_BUILD } = await import("../../services/common/version.ts");
    return void process.stdout.write(`${TANDEM_BUILD}\n`);
  }
  if (name === "help") return (await commandOf(rest[0]!).load())(["--help"]);
  return (await commandOf(name).load())(rest);
}

function commandOf(name: string): Command {
  if (Object.hasOwn(COMMANDS, name)) return COMMANDS[name]!;
  const names = Object.keys(COMMANDS);
  // A prefix wins: `stat` means status, although chat is fewer letters away.
  const meant = names.find((candidate) => name.length > 1 && candidate.startsWith(name)) ?? nearest(name, names);
  const hint = meant === undefined ? "" : ` Did you mean "${meant}"?`;
  throw new ConfigError(`tandem has no command "${name}".${hint} "tandem --help" lists all.`);
}

function overview(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length));
  const lines = Object.entries(COMMANDS).map(([name, command]) => `  ${name.padEnd(width)}  ${command.summary}`);
  return `Tandem serves large language models with prefill and decode on separate instances.

Usage: tandem COMMAND [--KEY VALUE ...]

${lines.join("\n")}

  tandem COMMAND --help   all settings of a command, with units, defaults and variables
  tandem --version
`;
}
