// TCP ports of this machine, for processes that are about to be started.
import { createServer } from "node:net";
import { StartError } from "./run-main.ts";

/**
 * Below the ports that systems use for outgoing connections (32,768 and up on Linux), above the KV ports of engines.
 */
const RANGE = { first: 22_500, count: 10_000 };
const TRIES = 1_000;
const given = new Set<number>();

/** Why `host`:`port` can't be listened on, as the system's code: `EADDRINUSE`. Undefined if it can. */
export function listenProblem(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(undefined)));
  });
}

/**
 * A free port of `host`. Never a port that the system could give to another socket before the process listens there,
 * nor one that this process was given before. If a server can listen on port 0 and report its port, use that instead.
 *
 * @throws StartError if `host` does not belong to this machine, or has no free port.
 */
export async function freePort(host = "127.0.0.1"): Promise<number> {
  let problem: string | undefined;
  for (let tries = 0; tries < TRIES; tries++) {
    const port = RANGE.first + Math.floor(Math.random() * RANGE.count);
    if (given.has(port)) continue;
    problem = await listenProblem(host, port);
    if (problem === undefined) {
      given.add(port);
      return port;
    }
    if (problem !== "EADDRINUSE") break;
  }
  throw new StartError(`${host} has no free port (${problem}).`);
}
