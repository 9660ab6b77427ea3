// Tandem as a user runs it: `tandem up` in processes of its own, on free ports.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { freePort } from "./waits.ts";

const CLI = fileURLToPath(new URL("../../dist/clients/cli/main.js", import.meta.url));

export interface Tandem {
  /** Base URL of the REST API. */
  readonly url: string;
  readonly grpcAddress: string;
  /** The join token: what internal gRPC calls carry as `authorization: Bearer …`. */
  readonly token: string;
  readonly pid: number;
  /** All that `up` printed so far, both streams. */
  output(): string;
  [Symbol.asyncDispose](): Promise<void>;
}

function withEngine(flags: readonly string[]): readonly string[] {
  return flags.some((flag) => /^--(engine|attach|model|discover)/.test(flag) && !flag.startsWith("--engine.flag"))
    ? flags
    : ["--engine", "sim", ...flags];
}

/**
 * Resolves when the router can serve. `flags` are those of `tandem up`; where they name no engine, it is the sim.
 *
 * @param program The build under test and its Node; this clone's, if not given.
 */
export async function startTandem(
  flags: readonly string[],
  env: Record<string, string> = {},
  program: { readonly node: string; readonly cli: string; readonly cwd?: string } = {
    node: process.execPath,
    cli: CLI,
  },
): Promise<Tandem> {
  const [port, grpcPort] = [await freePort(), await freePort()];
  const token = "token-of-the-tests";
  const child = spawn(
    program.node,
    [program.cli, "up", "--port", String(port), "--grpc-port", String(grpcPort), ...withEngine(flags)],
    {
      cwd: program.cwd,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, TANDEM_TOKEN: token, ...env },
    },
  );
  let output = "";
  const url = `http://127.0.0.1:${port}`;
  let ready = false;
  let exited = false;
  child.once("exit", () => (exited = true));
  // Whenever `up` says something, ask whether it can serve by now; engines that are adopted come without a word of it.
  let look = (): void => {};
  const looking = setInterval(() => look(), 250);
  await new Promise<void>((resolve, reject) => {
    const onOutput = async (chunk: Buffer): Promise<void> => {
      output += chunk.toString();
      if (ready) return;
      const answer = await fetch(`${url}/readyz`).catch(() => undefined);
      if (answer?.status !== 200 || ready) return;
      ready = true;
      resolve();
    };
    look = () => void onOutput(Buffer.alloc(0));
    child.stdout.on("data", onOutput);
    child.stderr.on("data", onOutput);
    child.once("exit", () => reject(new Error(`tandem up ended before it could serve:\n${output}`)));
  }).finally(() => clearInterval(looking));
  return {
    url,
    grpcAddress: `127.0.0.1:${grpcPort}`,
    token,
    pid: child.pid!,
    output: () => output,
    async [Symbol.asyncDispose]() {
      if (exited) return;
      const exit = once(child, "exit");
      child.kill("SIGINT");
      await exit;
    },
  };
}
