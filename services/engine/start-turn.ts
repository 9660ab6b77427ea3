// One engine after another on one device. vLLM measures free memory while it starts, and two that measure at once both
// fail, or both believe to have what one of them gets (seen on a GPU). Across processes, by a name that the system frees
// when its owner dies: an abstract socket. Only Linux has those; elsewhere nobody waits.
import { createServer, type Server } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const ASK_AGAIN_MS = 200;

export interface Turn {
  end(): void;
}

/**
 * Resolves when this process has its turn on all of `devices`.
 *
 * @param onWait Called once where somebody else has it.
 * @throws the signal's reason
 */
export async function startTurn(devices: readonly string[], signal: AbortSignal, onWait: () => void = () => {}): Promise<Turn> {
  const held: Server[] = [];
  const end = (): void => {
    for (const server of held.splice(0)) server.close();
  };
  if (process.platform !== "linux") return { end };
  try {
    let waited = false;
    // In one order for all, so that no two wait for each other.
    for (const device of [...new Set(devices)].sort()) {
      for (;;) {
        signal.throwIfAborted();
        const server = await claim(`\0tandem-engine-start-${process.getuid?.() ?? 0}-${device}`);
        if (server !== undefined) {
          held.push(server);
          break;
        }
        if (!waited) onWait();
        waited = true;
        await sleep(ASK_AGAIN_MS, undefined, { signal }).catch(() => {});
      }
    }
    return { end };
  } catch (error) {
    end();
    throw error;
  }
}

function claim(path: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", (error: NodeJS.ErrnoException) => (error.code === "EADDRINUSE" ? resolve(undefined) : reject(error)));
    server.listen({ path }, () => {
      server.unref();
      resolve(server);
    });
  });
}
