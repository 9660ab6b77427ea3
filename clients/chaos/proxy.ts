// A TCP proxy that fails as networks do: it falls silent with open connections, is slow, or breaks connections in the
// middle of a message.
import { connect, createServer, type Server, type Socket } from "node:net";
import { once } from "node:events";

/** `drop`: no bytes pass, connections stay open. `halve`: half of the next bytes each way pass, then a reset. */
export type LinkMode = { readonly kind: "pass" | "drop" | "halve" } | { readonly kind: "delay"; readonly ms: number };

export interface Proxy {
  setMode(mode: LinkMode): void;
  close(): Promise<void>;
}

interface Endpoint {
  readonly host: string;
  readonly port: number;
}

export interface ProxyLink {
  readonly listen: Endpoint;
  readonly target: Endpoint;
}

/** Starts several listeners that fail together: the addresses of one peer. */
export async function startProxy(links: readonly ProxyLink[]): Promise<Proxy> {
  let mode: LinkMode = { kind: "pass" };
  const pairs = new Set<Pair>();
  const servers: Server[] = [];
  for (const { listen, target } of links) {
    // Not half-open: neither gRPC nor ZeroMQ closes one side alone.
    const server = createServer({ noDelay: true }, (near) => {
      const closed = (): unknown => pairs.delete(pair);
      const pair: Pair = openPair(near, target, () => mode, closed);
      pairs.add(pair);
    });
    server.listen(listen.port, listen.host);
    await once(server, "listening");
    servers.push(server);
  }
  return {
    setMode(next) {
      mode = next;
      for (const pair of pairs) pair.modeChanged();
    },
    async close() {
      for (const pair of pairs) pair.destroy();
      await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
    },
  };
}

interface Pair {
  modeChanged(): void;
  destroy(): void;
}

function openPair(near: Socket, target: Endpoint, mode: () => LinkMode, closed: () => void): Pair {
  const far = connect({ host: target.host, port: target.port, noDelay: true });
  const destroy = (): void => {
    near.resetAndDestroy();
    far.resetAndDestroy();
    closed();
  };
  const send = (to: Socket, from: Socket, bytes: Buffer): void => {
    if (to.destroyed || to.write(bytes)) return;
    from.pause();
    to.once("drain", () => {
      if (mode().kind !== "drop") from.resume();
    });
  };
  /** Returns a function that sends all delayed bytes: TCP may be slow, but never out of order. */
  const forward = (from: Socket, to: Socket): (() => void) => {
    const late: Buffer[] = [];
    from.on("data", (bytes: Buffer) => {
      const now = mode();
      if (now.kind === "halve") {
        if (!to.destroyed) to.write(bytes.subarray(0, bytes.length >> 1));
        setImmediate(destroy);
      } else if (now.kind === "delay") {
        late.push(bytes);
        setTimeout(() => {
          const oldest = mode().kind === "drop" ? undefined : late.shift();
          if (oldest !== undefined) send(to, from, oldest);
        }, now.ms).unref();
      } else send(to, from, bytes);
    });
    // A close on one side closes the other side, unless the network is silent.
    from.on("close", () => {
      if (mode().kind === "drop") return;
      to.destroy();
      closed();
    });
    from.on("error", () => {});
    return () => {
      for (const bytes of late.splice(0)) send(to, from, bytes);
    };
  };
  const catchUp = [forward(near, far), forward(far, near)];
  const pair: Pair = {
    modeChanged() {
      const { kind } = mode();
      const silent = kind === "drop";
      if (kind === "pass" || kind === "halve") for (const one of catchUp) one();
      for (const socket of [near, far]) {
        if (silent) socket.pause();
        else socket.resume();
      }
      // One side closed while no bytes passed; the other side is closed now.
      if (!silent && (near.destroyed || far.destroyed)) destroy();
    },
    destroy,
  };
  pair.modeChanged();
  return pair;
}
