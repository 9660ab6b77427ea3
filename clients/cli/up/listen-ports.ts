// The two addresses of a run, checked before anything is started: a taken port is found in a millisecond and named with
// its flag, not by a process that dies of it.
import { createServer } from "node:net";
import { splitAddress } from "../../../services/common/address.ts";
import { StartError } from "../../../services/common/config.ts";
import { liveRuns } from "../run-file.ts";

export interface ListenPorts {
  readonly rest: string;
  readonly grpc: string;
}

/** @throws StartError when one can't be listened on; the message names the flag that changes it. */
export async function listenPorts(rest: string, grpc: string, stateDir: string): Promise<ListenPorts> {
  const ports = { rest: await withPort(rest), grpc: await withPort(grpc) };
  if (ports.rest === ports.grpc)
    throw new StartError(`--port and --grpc-port are both ${ports.rest}; give two different ports.`);
  for (const [flag, listen] of [
    ["--port", ports.rest],
    ["--grpc-port", ports.grpc],
  ] as const) {
    const { host, port } = splitAddress(listen);
    const problem = await listenProblem(host, port);
    if (problem === undefined) continue;
    if (problem === "EADDRINUSE") throw new StartError(taken(listen, flag, stateDir));
    throw new StartError(`${listen} can't be listened on (${problem}). ${flag} changes the address.`);
  }
  return ports;
}

function taken(listen: string, flag: string, stateDir: string): string {
  const { port } = splitAddress(listen);
  const owner = liveRuns(stateDir).find(
    (run) => run.restUrl.endsWith(`:${port}`) || run.grpcAddress.endsWith(`:${port}`),
  );
  const who =
    owner === undefined
      ? "another program listens there"
      : `another \`tandem up\` (pid ${owner.pid}) listens there; \`tandem status\` shows it`;
  return `${listen} is taken: ${who}. Stop it, or start this one elsewhere with ${flag} PORT (0 takes a free one).`;
}

/** Error code of trying to listen there, such as `EADDRINUSE`; undefined when one can. */
function listenProblem(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(undefined)));
  });
}

/** Below the range from which the system takes ports for outgoing connections (32768 and up on Linux). */
const FIRST_PORT = 10_000;
const PORT_COUNT = 10_000;

/** `listen` with a port that is free now in place of 0: processes that must know it can't each take a random one. */
async function withPort(listen: string): Promise<string> {
  const { host, port } = splitAddress(listen);
  if (port !== 0) return listen;
  for (let attempt = 0; attempt < 100; attempt++) {
    const candidate = FIRST_PORT + Math.floor(Math.random() * PORT_COUNT);
    if ((await listenProblem(host, candidate)) === undefined) return listen.replace(/:0$/, `:${candidate}`);
  }
  throw new StartError(`no free port found on ${host} from ${FIRST_PORT} to ${FIRST_PORT + PORT_COUNT - 1}.`);
}
