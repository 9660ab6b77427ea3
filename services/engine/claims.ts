// What an engine that is about to start claims from the other engines of this machine: KV ports, until it is gone, and
// its turn to start on its devices.
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { type Clock, pause, systemClock } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { listenProblem } from "../common/ports.ts";
import { StartError } from "../common/run-main.ts";

const ASK_AGAIN_MS = 200;

export type Release = () => void;

export interface ClaimedPorts {
  readonly first: number;
  readonly release: Release;
}

/**
 * A name that one process of this machine holds, and that the system frees when its holder dies: an abstract socket.
 * Undefined if another one holds it. Only Linux has those; elsewhere every claim is granted.
 */
async function claimName(name: string): Promise<Release | undefined> {
  if (process.platform !== "linux") return () => {};
  const server = createServer((socket) => socket.destroy()).listen({ path: `\0tandem-${name}` });
  try {
    await once(server, "listening");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE") return undefined;
    throw error;
  }
  server.unref();
  return () => void server.close();
}

export interface PortClaim {
  readonly host: string;
  /** The first port to try. 1,000 are tried. */
  readonly from: number;
  /** Ports in a row. */
  readonly span: number;
  /**
   * Where the ports that engines of this user had are remembered, one empty file each, beyond the life of their wrappers;
   * they are not given again until no other is left. vLLM's P2P NCCL keeps a connection to every partner permanently, and
   * hangs with an engine that reuses the address of another one (0.23, p2p_nccl_engine.py: `socks` and `comms`).
   */
  readonly usedFolder?: string | undefined;
  readonly log: Log;
}

/**
 * The first ports in a row that are free and that no other engine of Tandem was given. A vLLM loads for a minute before it
 * binds, and two that were given one port at the same time don't both start (one hung for good on 0.32 with NIXL); so a
 * port is claimed from here on, not only found free. Another program may still take it before the engine binds it.
 *
 * @throws StartError where `host` is not of this machine, or has no such ports.
 */
export async function claimPorts(o: PortClaim): Promise<ClaimedPorts> {
  const { host, from, span, usedFolder } = o;
  let claimed = await claimUnused(o);
  if (claimed === undefined && usedFolder !== undefined) {
    rmSync(usedFolder, { recursive: true, force: true });
    claimed = await claimUnused(o);
  }
  if (claimed === undefined) {
    const wanted = span === 1 ? "port" : `${span} ports in a row`;
    throw new StartError(`no ${wanted} of ${host} from ${from} to ${lastOf(from)} ${span === 1 ? "is" : "are"} free`);
  }
  if (usedFolder === undefined) return claimed;
  try {
    mkdirSync(usedFolder, { recursive: true, mode: 0o700 });
    for (let port = claimed.first; port < claimed.first + span; port++) writeFileSync(join(usedFolder, `${port}`), "");
  } catch (error) {
    // A full disk only loses a port, which may then be reused.
    o.log.warn("the KV port of an engine could not be recorded", { folder: usedFolder, error });
  }
  return claimed;
}

const lastOf = (from: number): number => Math.min(65_535, from + 999);

async function claimUnused({ host, from, span, usedFolder }: PortClaim): Promise<ClaimedPorts | undefined> {
  const held: Release[] = [];
  const release = (): void => releaseAll(held);
  for (let port = from; port <= lastOf(from); port++) {
    const isUsed = usedFolder !== undefined && existsSync(join(usedFolder, `${port}`));
    const claim = isUsed ? undefined : await claimName(`port-${port}`);
    if (claim !== undefined) held.push(claim);
    const problem = claim === undefined ? "EADDRINUSE" : await listenProblem(host, port);
    if (problem !== undefined) release();
    if (problem === "EADDRNOTAVAIL" || problem === "ENOTFOUND")
      throw new StartError(
        `--kv.listen: ${host} is not an address of this machine (${problem}). Give one that is; --kv.advertise sets another for partners to dial.`,
      );
    if (held.length === span) return { first: port - span + 1, release };
  }
  release();
  return undefined;
}

/**
 * One engine after another on one device: vLLM measures free memory while it starts, and two that measure at once both
 * fail, or both believe to have what one of them gets (seen on a GPU). Resolves when this process has its turn on all of
 * `devices`, with what ends the turn. Across processes; only on Linux.
 *
 * @param onWait Called once if another process has the turn.
 * @throws the signal's reason
 */
export async function startTurn(
  devices: readonly string[],
  signal: AbortSignal,
  onWait: () => void,
  clock: Clock = systemClock,
): Promise<Release> {
  const held: Release[] = [];
  let waited = false;
  try {
    // In one order for all, so that no two wait for each other.
    for (const device of [...new Set(devices)].sort()) {
      for (;;) {
        signal.throwIfAborted();
        const claim = await claimName(`engine-start-${device}`);
        if (claim !== undefined) {
          held.push(claim);
          break;
        }
        if (!waited) onWait();
        waited = true;
        await pause(clock, ASK_AGAIN_MS, signal);
      }
    }
    return () => releaseAll(held);
  } catch (error) {
    releaseAll(held);
    throw error;
  }
}

function releaseAll(held: Release[]): void {
  for (const release of held.splice(0)) release();
}
