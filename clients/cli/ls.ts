// `tandem ls`: the deployments of this user that run on this machine.
import { boolean, defineConfig, loadConfig } from "../../services/common/config.ts";
import { stateDir, stateDirOf } from "../../services/common/state-dir.ts";
import { renderTable, type Column } from "../common/table.ts";
import { liveRuns, type Run } from "./run-file.ts";

export const lsConfig = defineConfig(
  "ls",
  {
    json: boolean("json", "Print JSON: all facts of each deployment except its join token.", { default: false }),
    stateDir,
  },
  { summary: "Lists the deployments of this user that run here: every `tandem up`.", usage: "tandem ls [--json]" },
);

const COLUMNS: readonly Column<Run>[] = [
  { title: "NAME", cell: ({ name }) => name },
  { title: "OPENAI API", cell: ({ restUrl }) => `${restUrl}/v1` },
  { title: "GRPC", cell: ({ grpcAddress }) => grpcAddress },
  { title: "PROCESSES", align: "right", cell: ({ processes }) => `${processes.length}` },
  { title: "SINCE", cell: ({ startedUnixMs }) => new Date(startedUnixMs).toISOString().slice(0, 19) },
  { title: "PID", align: "right", cell: ({ pid }) => `${pid}` },
  { title: "LOGS", cell: ({ logDir }) => logDir },
];

export async function runLs(argv: readonly string[]): Promise<void> {
  const config = loadConfig(lsConfig, { argv, env: process.env });
  const runs = liveRuns(stateDirOf(config));
  const table =
    runs.length === 0 ? "No deployment runs here. Start one with `tandem up`." : renderTable(runs, COLUMNS, true);
  // The token belongs in files that only its owner can read, not on screens.
  const json = JSON.stringify(runs, (key, value: unknown) => (key === "token" ? undefined : value), 2);
  process.stdout.write(`${config.json ? json : table}\n`);
}
