// A name that one process of this machine holds, and that the system frees when its holder dies: an abstract socket.
// Only Linux has those; elsewhere every claim is granted.
import { createServer } from "node:net";

export type Release = () => void;

/** Undefined where somebody holds it. */
export function claimName(name: string): Promise<Release | undefined> {
  if (process.platform !== "linux") return Promise.resolve(() => {});
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(undefined) : reject(error),
    );
    server.listen({ path: `\0tandem-${name}` }, () => {
      server.unref();
      resolve(() => void server.close());
    });
  });
}
