// Remembers the KV ports that engines of this user had on this machine, one empty file each, beyond the life of their
// wrappers. vLLM's P2P NCCL keeps a connection to every partner permanently, and hangs with an engine that reuses the
// address of another one. So a restarted instance must not get its old port (0.23, p2p_nccl_engine.py: `socks` and
// `comms`).
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Log } from "../common/log.ts";

export interface UsedPorts {
  has(port: number): boolean;
  add(port: number): void;
  /** All of them may be used again: no other is left. */
  forget(): void;
}

/** @param folder Where the files are kept. Never throws: a full disk only loses a port, which may then be reused. */
export function usedPorts(folder: string, log: Log): UsedPorts {
  return {
    has: (port) => existsSync(join(folder, String(port))),
    add(port) {
      try {
        mkdirSync(folder, { recursive: true, mode: 0o700 });
        writeFileSync(join(folder, String(port)), "");
      } catch (error) {
        log.warn("the KV port of an engine could not be recorded", { folder, error });
      }
    },
    forget: () => rmSync(folder, { recursive: true, force: true }),
  };
}
