// Ports for an engine that is about to start. A port found free may be taken again before the engine binds it; a start
// that fails that way is tried again with the next one.
import { createServer } from "node:net";

/** A free port that the system picks. */
export async function freePort(host: string): Promise<number> {
  const port = await tryPort(host, 0);
  if (port === undefined) throw new Error(`no port of ${host} is free`);
  return port;
}

/** The first free port at or after `from`, with the `span - 1` after it free as well. Looks at 1,000 of them. */
export async function freePortFrom(host: string, from: number, span = 1): Promise<number> {
  const last = Math.min(65_535, from + 999);
  let free = 0;
  for (let port = from; port <= last; port++) {
    free = (await tryPort(host, port)) === undefined ? 0 : free + 1;
    if (free === span) return port - span + 1;
  }
  throw new Error(`no port of ${host} from ${from} to ${last} is free`);
}

function tryPort(host: string, port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once("error", () => resolve(undefined));
    probe.listen({ host, port, exclusive: true }, () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === "object" && address !== null ? address.port : undefined));
    });
  });
}
