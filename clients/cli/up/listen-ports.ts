// The two addresses of a run, checked before anything is started: a port in use is found in a millisecond and reported
// with its flag, instead of by a process that dies of it.
import { joinAddress, splitAddress } from "../../../services/common/address.ts";
import { StartError } from "../../../services/common/config.ts";
import { freePort, listenProblem } from "../../../services/common/ports.ts";
import { liveRuns } from "../run-file.ts";

/** host:port of each; the port is never 0. */
export interface ListenPorts {
  readonly rest: string;
  readonly grpc: string;
}

/** @throws StartError when an address can't be listened on; the message names the flag that changes the address. */
export async function listenPorts(restListen: string, grpcListen: string, stateDir: string): Promise<ListenPorts> {
  const [rest, grpc] = [await withPort(restListen), await withPort(grpcListen)];
  if (rest === grpc) throw new StartError(`--port and --grpc-port are both ${rest}; give two different ports.`);
  await mustBeFree(rest, "--port", stateDir);
  await mustBeFree(grpc, "--grpc-port", stateDir);
  return { rest, grpc };
}

async function mustBeFree(listen: string, flag: string, stateDir: string): Promise<void> {
  const { host, port } = splitAddress(listen);
  const problem = await listenProblem(host, port);
  if (problem === undefined) return;
  if (problem !== "EADDRINUSE")
    throw new StartError(`${listen} can't be listened on (${problem}). ${flag} changes the address.`);
  const owner = liveRuns(stateDir).find((run) => [run.restUrl, run.grpcAddress].some((at) => at.endsWith(`:${port}`)));
  const who =
    owner === undefined
      ? "another program listens there"
      : `another \`tandem up\` (pid ${owner.pid}) listens there; \`tandem status\` shows it`;
  throw new StartError(
    `${listen} is in use: ${who}. Stop that program, or choose another port with ${flag} PORT (0 takes a free one).`,
  );
}

/** `listen` with a free port instead of 0, because several processes must know the port. */
async function withPort(listen: string): Promise<string> {
  const { host, port } = splitAddress(listen);
  return port === 0 ? joinAddress(host, await freePort(host)) : listen;
}
