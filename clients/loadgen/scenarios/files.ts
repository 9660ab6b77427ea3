// `npm run bench -- files`: how many of its own files a router runs for one streamed request. V8's precise coverage
// counts them from before to after the request, less the files that an idle router runs. A reader who follows a
// request through the router opens these files and no others.
import { spawn } from "node:child_process";
import { Session } from "node:inspector/promises";
import { integer, defineConfig, loadConfig, StartError } from "../../../services/common/config.ts";
import { TANDEM } from "../../common/child.ts";
import { openAiClient } from "../../client/openai.ts";

export const filesConfig = defineConfig(
  "bench files",
  { limit: integer("limit", "Exit with 1 if more files than this are run.", { default: 45, min: 1 }) },
  { summary: "Counts the files that one streamed request runs in a router.", usage: "npm run bench -- files" },
);

/** Long enough for several heartbeats and sweeps of an idle router. */
const IDLE_MS = 3_000;

export async function runFiles(argv: readonly string[]): Promise<void> {
  const config = loadConfig(filesConfig, { argv, env: process.env });
  const [{ startRouter }, { routerConfig }] = await Promise.all([
    import("../../../services/router/main.ts"),
    import("../../../services/router/config.ts"),
  ]);
  const quiet = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--log.level=error"];
  await using router = await startRouter(loadConfig(routerConfig, { argv: quiet, env: {} }));
  const instances = (["prefill", "decode"] as const).map((role) => {
    const flags = ["--engine.kind=sim", "--grpc.listen=127.0.0.1:0", `--registry.address=${router.grpcAddress}`];
    return spawn(process.execPath, [...TANDEM, role, ...flags], {
      stdio: ["pipe", "ignore", "ignore"], // The pipe ends with this process, and the instances end with the pipe.
      env: { ...process.env, TANDEM_PARENT_PIPE: "1" },
    });
  });
  try {
    const files = await filesOfOneRequest(router.restUrl);
    process.stdout.write(`${files.join("\n")}\n\nOne streamed request runs ${files.length} files.\n`);
    if (files.length > config.limit) throw new StartError(`More than the limit of ${config.limit} files.`);
  } finally {
    for (const instance of instances) instance.kill();
  }
}

async function filesOfOneRequest(url: string): Promise<string[]> {
  const client = openAiClient(url);
  while (!(await fetch(`${url}/readyz`)).ok) await new Promise((resolve) => setTimeout(resolve, 50));
  const [model] = await client.models();
  const ask = async (): Promise<void> => {
    const messages = [{ role: "user", content: "What is Tandem?" }];
    for await (const _ of await client.streamChat({ model: model!.id, max_tokens: 20, messages }));
  };
  await ask(); // Opens connections and runs lazy imports.
  const session = new Session();
  session.connect();
  await session.post("Profiler.enable");
  await session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: false });
  const ran = async (): Promise<Set<string>> => {
    const { result } = await session.post("Profiler.takePreciseCoverage");
    const own = result.filter(({ url: file, functions }) => isOwn(file) && functions.some(didRun));
    return new Set(own.map(({ url: file }) => file.slice(file.lastIndexOf("/services/") + 1)));
  };
  await ran();
  await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
  const idle = await ran();
  await ask();
  const busy = await ran();
  session.disconnect();
  return [...busy].filter((file) => !idle.has(file)).sort();
}

/** The client also runs in this process, and is not counted. */
function isOwn(url: string): boolean {
  return url.startsWith("file:") && /\/services\/[^/]+\//.test(url) && !url.includes("/node_modules/");
}

function didRun({ functionName, ranges }: { functionName: string; ranges: { count: number }[] }): boolean {
  return functionName !== "" && ranges.some(({ count }) => count > 0);
}
