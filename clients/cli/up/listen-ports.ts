// The two addresses of a run, checked before anything is started: a taken port is found in a millisecond and named with
// its flag, not by a process that dies of it.
import { joinAddress, splitAddress } from "../../../services/common/address.ts";
import { StartError } from "../../../services/common/config.ts";
import { freePort, listenProblem } from "../../../services/common/ports.ts";
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

/** `listen` with a port that is free now in place of 0: processes that must know it can't each take a random one. */
async function withPort(listen: string): Promise<string> {
  const { host, port } = splitAddress(listen);
  return port === 0 ? joinAddress(host, await freePort(host)) : listen;
}
