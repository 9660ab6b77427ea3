// Ports for an engine that is about to start. A port found free may be taken again before the engine binds it; a start
// that fails that way is tried again with the next one.
import { listenProblem } from "../common/ports.ts";
import { StartError } from "../common/run-main.ts";
import { claimName, type Release } from "./name-claim.ts";
import type { UsedPorts } from "./used-ports.ts";

export interface ClaimedPorts {
  readonly first: number;
  /** The engine is gone, or never came. */
  release(): void;
}

/**
 * The first `span` ports in a row at or after `from` that are free and that no other engine of Tandem was given. A vLLM
 * loads for a minute before it binds, and two that were given one port at the same time don't both start (one hung for
 * good on 0.32 with NIXL); so a port is claimed from here on, not only found free. Looks at 1,000 of them.
 *
 * @param used These come last, and what is claimed is added to them.
 * @throws StartError where `host` is not of this machine, or has no such ports.
 */
export async function claimPortsFrom(host: string, from: number, span = 1, used?: UsedPorts): Promise<ClaimedPorts> {
  const fresh = await claimFrom(host, from, span, (port) => used?.has(port) === true);
  if (fresh === undefined) used?.forget();
  const claimed = fresh ?? (used === undefined ? undefined : await claimFrom(host, from, span, () => false));
  if (claimed === undefined) {
    const last = Math.min(65_535, from + 999);
    throw new StartError(
      `no ${span === 1 ? "port" : `${span} ports in a row`} of ${host} from ${from} to ${last} ${span === 1 ? "is" : "are"} free`,
    );
  }
  for (let port = claimed.first; port < claimed.first + span; port++) used?.add(port);
  return claimed;
}

async function claimFrom(
  host: string,
  from: number,
  span: number,
  avoid: (port: number) => boolean,
): Promise<ClaimedPorts | undefined> {
  const last = Math.min(65_535, from + 999);
  const held: Release[] = [];
  const release = (): void => {
    for (const one of held.splice(0)) one();
  };
  for (let port = from; port <= last; port++) {
    const claim = avoid(port) ? undefined : await claimName(`port-${port}`);
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
