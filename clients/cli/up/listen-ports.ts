// The two addresses of a run, checked before anything is started: a port in use is found in a millisecond and reported
// with its flag, instead of by a process that dies of it.
import { joinAddress, splitAddress } from "../../../services/common/address.ts";
import { StartError } from "../../../services/common/config.ts";
import { freePort, listenProblem } from "../../../services/common/ports.ts";
import { liveRuns } from "../run-file.ts";

export interface ListenPorts {
  readonly rest: string;
  readonly grpc: string;
}

/** @throws StartError when an address can't be listened on; the message names the flag that changes the address. */
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
  return `${listen} is in use: ${who}. Stop that program, or choose another port with ${flag} PORT (0 takes a free one).`;
}

/** `listen` with a free port instead of 0, because several processes must know the port. */
async function withPort(listen: string): Promise<string> {
  const { host, port } = splitAddress(listen);
  return port === 0 ? joinAddress(host, await freePort(host)) : listen;
}
