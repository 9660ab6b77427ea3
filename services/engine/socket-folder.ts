// The folder of an engine's Unix socket. Only this user can enter it, so no other user of the machine reaches the engine,
// which asks its callers for nothing: a port on loopback is open to them all.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { StartError } from "../common/run-main.ts";

/** What the kernels keep of a socket's path, in bytes: 107 on Linux, 103 on macOS. */
const PATH_LIMIT = 103;
const PREFIX = "tandem-engine-";
const SOCKET = "http.sock";

export interface SocketFolder {
  readonly folder: string;
  readonly socketPath: string;
}

/** @throws StartError if no folder for temporary files can be written to. */
export function makeSocketFolder(temporary: string = tmpdir()): SocketFolder {
  // The folder named by the environment, unless its path is too long for a socket.
  const fits = Buffer.byteLength(join(temporary, `${PREFIX}XXXXXX`, SOCKET)) <= PATH_LIMIT;
  const parent = fits ? temporary : "/tmp";
  try {
    // Mode 0700, whatever the umask.
    const folder = mkdtempSync(join(parent, PREFIX));
    return { folder, socketPath: join(folder, SOCKET) };
  } catch (error) {
    throw new StartError(
      `The folder for the engine's socket can't be created: ${(error as Error).message}. Set TMPDIR to a folder that can be written to.`,
    );
  }
}

/** Harmless for a folder that is gone, or is not one of these. */
export function removeSocketFolder(folder: string): void {
  if (basename(folder).startsWith(PREFIX)) rmSync(folder, { recursive: true, force: true });
}
